"""AIBrix: pack the load on few replicas, each up to a cap."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd, Standing
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import Placement, ReplicaView, Role
from slo_opt.routing.registry import RoutingContext


class AibrixRouter:
    """``slo-pack-load``: the most utilised replica that stays under a cap; ``slo-least-load``: the least utilised.

    Where none stays under the cap, the least utilised.

    Chosen here: a replica is as utilised as the scarcest of what it offers, with the new request in it: KV cache,
    sequences, iteration time of the tightest TPOT, and time to the next token of what is left of the request's limit.
    AIBrix has a throughput measured under the SLO in their place. Best effort goes to the least utilised.

    Parameters
    ----------
    context : RoutingContext
        Length knowledge.
    cap : float
        Highest utilisation that packing leads to.
    pack : bool
        False always takes the least utilised.

    References
    ----------
    AIBrix, https://github.com/vllm-project/aibrix (gateway routing strategies).
    """

    name = "aibrix-pack-load"

    def __init__(self, context: RoutingContext, cap: float = 0.8, pack: bool = True) -> None:
        self._lengths = context.lengths
        self._forecast = Forecast(context.lengths)
        self._cap = cap
        self._pack = pack

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The most or the least utilised."""
        found = [(self._utilisation(job, view, now_s), view) for view in replicas]
        under = [item for item in found if item[0] <= self._cap]
        if self._pack and under and job.standing is not Standing.BEST_EFFORT:
            return Placement(max(under, key=lambda item: item[0])[1].id)
        return Placement(min(found, key=lambda item: item[0])[1].id)

    def _utilisation(self, job: Job, view: ReplicaView, now_s: float) -> float:
        forecast = self._forecast
        shares = [
            forecast.kv_share(job, view),
            forecast.seats_share(view),
            forecast.next_token_s(job, view, now_s) / max(job.due_s - now_s, 1e-6),
        ]
        if view.role is not Role.PREFILL:
            shares.append(forecast.near_step_s(job, view) / forecast.tightest_s(job, view))
        return max(shares)

    def observe(self, end: RoundEnd) -> None:
        """Learn its length."""
        self._lengths.observe(end)
