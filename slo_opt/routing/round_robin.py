"""Round-robin: each replica in turn."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.registry import RoutingContext


class Turns:
    """Whose turn it is, in a fleet that may change and of which not all replicas are always offered.

    The one whose last turn is longest ago; of those that never had one, the first offered.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    def order(self, replicas: Sequence[ReplicaView]) -> list[ReplicaView]:
        """Replicas by turn, the next first."""
        return sorted(replicas, key=lambda view: self._last.get(view.id, -1))

    def took(self, view: ReplicaView) -> None:
        """A replica has had its turn."""
        self._last[view.id] = self._count
        self._count += 1


class RoundRobinRouter:
    """Each replica in turn, whatever the request and whatever the load.

    Parameters
    ----------
    context : RoutingContext
        Not looked at.
    """

    name = "round-robin"

    def __init__(self, context: RoutingContext) -> None:
        self._turns = Turns()

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The next in turn."""
        view = self._turns.order(replicas)[0]
        self._turns.took(view)
        return Placement(view.id)

    def observe(self, end: RoundEnd) -> None:
        """Nothing is learned."""
