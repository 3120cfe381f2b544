"""SLOs-Serve's routing: a replica's admission DP, the next replica on decline, best effort at the last."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd, Standing
from slo_opt.routing.dp_admission import ReplicaAdmission
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.registry import RoutingContext
from slo_opt.routing.round_robin import Turns


class SlosServeRouter:
    """The first replica, in turn, whose plan can take the request; the last in turn keeps it as best effort.

    Replicas take turns at being asked first. One whose admission DP declines hands the request to the next. Best effort
    goes where the turn is.

    Chosen here: the router asks a plan on its own view of the replica, in the place of the replica itself, so that a
    request that nobody takes does not travel; which replica has the turn does not depend on who accepted before.

    Parameters
    ----------
    context : RoutingContext
        Length knowledge.
    growth : bool
        Running decodes hold KV blocks as they grow and until they depart, not their peak throughout as in the paper.
    hops : int or None
        Replicas that may decline before the next one keeps the request; None asks all.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4 (multi-replica serving).
    """

    name = "slos-serve"

    def __init__(self, context: RoutingContext, growth: bool = False, hops: int | None = None) -> None:
        self._lengths = context.lengths
        self._admission = ReplicaAdmission(context.lengths, "growth" if growth else "peak")
        self._turns = Turns()
        self._hops = hops

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The first that accepts."""
        order = self._turns.order(replicas)
        self._turns.took(order[0])
        if job.standing is Standing.BEST_EFFORT:
            return Placement(order[0].id, best_effort=True)
        if self._hops is not None:
            order = order[: self._hops + 1]
        for view in order:
            if self._admission.accepts(job, view, now_s):
                return Placement(view.id)
        return Placement(order[-1].id, best_effort=True)

    def observe(self, end: RoundEnd) -> None:
        """Learn its length."""
        self._lengths.observe(end)
