"""Join the shortest queue."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.registry import RoutingContext


class JoinShortestQueueRouter:
    """The replica with the fewest requests, running and waiting; of those, with the fewest that wait.

    Parameters
    ----------
    context : RoutingContext
        Not looked at.

    References
    ----------
    Winston, Journal of Applied Probability 14 (1977), doi 10.2307/3213271 (optimal for equal exponential servers).
    """

    name = "join-shortest-queue"

    def __init__(self, context: RoutingContext) -> None:
        pass

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The shortest queue."""
        return Placement(min(replicas, key=lambda view: (view.num_requests, len(view.waiting))).id)

    def observe(self, end: RoundEnd) -> None:
        """Nothing is learned."""
