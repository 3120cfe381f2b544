"""A replica's admission plan, asked by the router: would it still serve everyone it has, and one more?"""

from collections.abc import Sequence
from typing import Literal

from slo_opt.policies.admission import Admission, least_prefill_s
from slo_opt.policies.interface import EngineSnapshot, Job
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.per_version import PerVersion


class ReplicaAdmission:
    """The multi-SLO plan of SLOs-Serve on what the router knows of a replica.

    The plan begins when the batch under way ends. Decodes stay in it. Of the prompts that are there, admitted or
    undecided, it keeps the best set that it can serve; left out are those that are late whatever happens, and best
    effort. The replica accepts a further request if the plan serves it beside that set.

    A replica that only prefills is planned without decodes: its requests leave with their first token. A request that
    arrives as a decode has nothing to plan; for it the iteration time decides, see `Forecast.attainable`.

    Parameters
    ----------
    lengths : LengthPredictor
        For KV blocks, and departures of decodes.
    memory : {"peak", "growth"}
        See `slo_opt.domain.plan.admission_problem`.
    forecast : Forecast or None
        One that the router has already, so that each view is summed up once.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4.
    """

    def __init__(
        self,
        lengths: LengthPredictor,
        memory: Literal["peak", "growth"] = "growth",
        forecast: Forecast | None = None,
    ) -> None:
        self._admission = Admission(lengths, memory)
        self._prefill_admission = Admission(lengths, memory, decodes=False)
        self._forecast = Forecast(lengths) if forecast is None else forecast
        self._kept = PerVersion[list[Job]](self._keep)

    def accepts(self, job: Job, view: ReplicaView, now_s: float) -> bool:
        """Whether the plan of the replica can take one more.

        Parameters
        ----------
        job : Job
            Not yet in the view.
        view : ReplicaView
            The replica.
        now_s : float
            The moment.
        """
        if job.decoding:
            return self._forecast.attainable(job, view, now_s)
        if self._forecast.seats_share(view) > 1 or _hopeless(job, view, now_s):
            return False
        kept = self.kept(view, now_s)
        return bool(self._plan(view, now_s, kept, [job]))

    def kept(self, view: ReplicaView, now_s: float) -> list[Job]:
        """Of the prompts in the replica, the best set that its plan can serve."""
        return self._kept(view, now_s)

    def _keep(self, view: ReplicaView, now_s: float) -> list[Job]:
        prompts = self._forecast.outlook(view).prompts
        hopeful = [job for job in prompts if not job.missed and not _hopeless(job, view, now_s)]
        if not hopeful:
            return []
        served = self._plan(view, now_s, [], hopeful) or set()
        return [job for job in hopeful if job in served]

    def _plan(self, view: ReplicaView, now_s: float, kept: Sequence[Job], free: Sequence[Job]) -> set[Job] | None:
        snapshot = EngineSnapshot(_begins_s(view, now_s), view.engine, [], [], view.free_kv_blocks)
        if view.role is Role.PREFILL:
            return self._prefill_admission.accept(snapshot, [], kept, free)
        decodes = [job for job in self._forecast.outlook(view).members if job.decoding]
        return self._admission.accept(snapshot, decodes, kept, free)


def _begins_s(view: ReplicaView, now_s: float) -> float:
    """When the next batch can begin."""
    return now_s if view.idle else max(now_s, view.batch_ends_s)


def _hopeless(job: Job, view: ReplicaView, now_s: float) -> bool:
    """Whether its next token is late even if it has the engine to itself from the next batch on."""
    return _begins_s(view, now_s) + least_prefill_s(job, view.engine) > job.due_s
