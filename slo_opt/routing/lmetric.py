"""LMetric: prefill tokens times batch size."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.load import load_of
from slo_opt.routing.per_version import PerVersion
from slo_opt.routing.registry import RoutingContext


class LMetricRouter:
    """The replica with the least product of tokens to prefill and requests, the new one counted in both.

    The first factor says how long it waits for its first token, the second how slow the tokens after it are; a product
    needs no weights between them.

    Chosen here: a request that only decodes counts as one token; ties go to the first offered.

    Parameters
    ----------
    context : RoutingContext
        Not looked at.

    References
    ----------
    LMetric (Zhang et al., arXiv 2603.15202).
    """

    name = "lmetric"

    def __init__(self, context: RoutingContext) -> None:
        self._load = PerVersion(load_of)

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The least product."""
        tokens = job.left_tokens

        def product(view: ReplicaView) -> int:
            load = self._load(view)
            return (load.queued_tokens + tokens) * (load.num_requests + 1)

        return Placement(min(replicas, key=product).id)

    def observe(self, end: RoundEnd) -> None:
        """Nothing is learned."""
