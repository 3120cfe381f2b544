"""Least loaded: where the contexts take the least of the KV cache."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.load import load_of
from slo_opt.routing.per_version import PerVersion
from slo_opt.routing.registry import RoutingContext


class LeastLoadedRouter:
    """The replica with the fewest requests, each weighted by the share of the KV cache that its context takes.

    A context counts as far as it exists: the blocks that are held, and those that prompts not yet prefilled will take.
    A large engine therefore gets more requests than a small one. Ties: the fewest requests, then the first offered.

    Parameters
    ----------
    context : RoutingContext
        Not looked at.
    """

    name = "least-loaded"

    def __init__(self, context: RoutingContext) -> None:
        self._load = PerVersion(load_of)

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The least loaded."""
        return Placement(min(replicas, key=self._weight).id)

    def _weight(self, view: ReplicaView) -> tuple[float, int]:
        load = self._load(view)
        return load.kv_share, load.num_requests

    def observe(self, end: RoundEnd) -> None:
        """Nothing is learned."""
