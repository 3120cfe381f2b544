"""llm-d: headroom between the SLO and the predicted latency, best fit or worst fit."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import Placement, ReplicaView, Role
from slo_opt.routing.registry import RoutingContext

TTFT_WEIGHT = 0.8
TPOT_WEIGHT = 0.2


class LlmDRouter:
    """Predict TTFT and TPOT on each replica and choose by headroom, ``SLO * buffer - predicted``.

    The headroom of TTFT weighs 0.8, that of TPOT 0.2. A replica fits if both are positive. Best fit takes the least
    headroom among those that fit, worst fit the most. Where none fits, both take the most: the least late.

    Chosen here: latencies come from the engine model instead of a model trained online; headrooms are shares of their
    limits before they are weighed, and the TPOT limit is the tightest in the replica; the best replica is taken where
    llm-d draws with weights. A request that only decodes has headroom of TPOT alone, a replica that only prefills that
    of TTFT alone.

    Parameters
    ----------
    context : RoutingContext
        Length knowledge.
    buffer : float
        Factor on the SLO; below 1 it keeps a distance.
    best_fit : bool
        Best fit, or worst fit.

    References
    ----------
    llm-d, https://llm-d.ai/docs/architecture/advanced/latency-predictor.
    """

    def __init__(self, context: RoutingContext, buffer: float = 1.0, best_fit: bool = True) -> None:
        self.name = "llm-d-best-fit" if best_fit else "llm-d-worst-fit"
        self._lengths = context.lengths
        self._forecast = Forecast(context.lengths)
        self._buffer = buffer
        self._best_fit = best_fit

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The fit."""
        found = [(*self._headroom(job, view, now_s), view) for view in replicas]
        fits = [(headroom, view) for fit, headroom, view in found if fit]
        if self._best_fit and fits:
            return Placement(min(fits, key=_first)[1].id)
        return Placement(max(fits or [(headroom, view) for _, headroom, view in found], key=_first)[1].id)

    def _headroom(self, job: Job, view: ReplicaView, now_s: float) -> tuple[bool, float]:
        """Whether it is positive for both latencies, and the two weighed."""
        forecast, buffer = self._forecast, self._buffer
        tpot = buffer - forecast.near_step_s(job, view) / forecast.tightest_s(job, view)
        if job.decoding:
            return tpot > 0, tpot
        limit_s = max(job.due_s - job.release_s, 1e-6)
        ttft_s = now_s - job.release_s + forecast.next_token_s(job, view, now_s)
        ttft = buffer - ttft_s / limit_s
        if view.role is Role.PREFILL:
            return ttft > 0, ttft
        return ttft > 0 and tpot > 0, TTFT_WEIGHT * ttft + TPOT_WEIGHT * tpot

    def observe(self, end: RoundEnd) -> None:
        """Learn its length."""
        self._lengths.observe(end)


def _first(item: tuple[float, ReplicaView]) -> float:
    return item[0]
