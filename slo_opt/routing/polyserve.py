"""PolyServe: a sub-fleet for each TPOT tier, load packed within it, looser requests promoted late."""

import bisect
import math
from collections.abc import Iterator, Sequence

from slo_opt.policies.interface import Job, RoundEnd, Standing
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.hopeful import fewest_requests, hold, latest_start_s
from slo_opt.routing.interface import Placement, ReplicaView, Role
from slo_opt.routing.registry import RoutingContext


class PolyServeRouter:
    """Own tier, then tighter tiers, then an idle replica, else wait; in each the most loaded that still attains it.

    A batch is capped by the tightest TPOT in the replica, so each tier has replicas of its own. A replica belongs to
    the tier of its tightest request that can still be attained: it enters a tier when it is idle and a request claims
    it, and leaves when it holds no request of that tier any more. Packing the most loaded first (the load gradient)
    empties the last replicas of a tier; those can be claimed by other tiers, or given back. A request goes to a tighter
    tier only when no replica of its own attains it (lazy promotion), and there the host's TPOT must hold. What nobody
    attains waits until it is hopeless, then it is best effort on the replica with the fewest requests.

    Chosen here: the load of a replica is the time of an iteration of all its requests; of tighter tiers the nearest is
    tried first; replicas that only prefill are one tier; a request that waits is tried again after `retry_s`.

    Parameters
    ----------
    context : RoutingContext
        Classes, length knowledge.
    tiers : bool
        Tier bins; otherwise every replica is open to every request, and still judged by its tightest TPOT.
    gradient : bool
        The most loaded first; otherwise the least loaded.
    promotion : bool
        Whether tighter tiers are tried at all.
    claim : bool
        Idle replicas belong to whoever claims them; otherwise replicas are dealt to the tiers in turn, for good.
    pending : bool
        Whether requests wait for a replica; otherwise what nobody attains is best effort at once.
    wait_aware : bool
        Whether predictions count the batch under way.
    continuous : bool
        Whether predictions count the decodes that prompts ahead become; see `slo_opt.routing.outlook.Outlook`.
    retry_s : float
        How often a request that waits is tried again, more than 0.

    References
    ----------
    PolyServe, arXiv 2507.17769, sections 3 and 4.
    """

    name = "polyserve"

    def __init__(
        self,
        context: RoutingContext,
        tiers: bool = True,
        gradient: bool = True,
        promotion: bool = True,
        claim: bool = True,
        pending: bool = True,
        wait_aware: bool = True,
        continuous: bool = True,
        retry_s: float = 0.02,
    ) -> None:
        self._lengths = context.lengths
        self._forecast = Forecast(context.lengths)
        self._tpots_s = sorted({slo.tpot_ms / 1e3 for slo in context.slo_classes.values() if not slo.best_effort})
        self._dealt: dict[str, float] = {}
        self._tiers = tiers
        self._gradient = gradient
        self._promotion = promotion
        self._claim = claim
        self._pending = pending
        self._wait_aware = wait_aware
        self._continuous = continuous
        self._retry_s = retry_s

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The ladder."""
        if job.standing is Standing.BEST_EFFORT:
            return Placement(fewest_requests(replicas).id, best_effort=True)
        forecast, wait_aware, continuous = self._forecast, self._wait_aware, self._continuous
        for rung in self._ladder(job, replicas):
            rung.sort(key=self._load, reverse=self._gradient)
            for view in rung:
                if forecast.attainable(job, view, now_s, wait_aware=wait_aware, continuous=continuous):
                    return Placement(view.id)
        held = hold(now_s, self._retry_s, latest_start_s(job, replicas)) if self._pending else None
        return held or Placement(fewest_requests(replicas).id, best_effort=True)

    def _ladder(self, job: Job, replicas: Sequence[ReplicaView]) -> Iterator[list[ReplicaView]]:
        """Groups of replicas, in the order in which they are tried."""
        if not self._tiers or all(view.role is Role.PREFILL for view in replicas):
            yield list(replicas)
            return
        own_s = job.tpot_s if self._claim else self._bin_s(job.tpot_s)
        bins: dict[float, list[ReplicaView]] = {}
        for view in replicas:
            bins.setdefault(self._tier_s(view), []).append(view)
        yield bins.get(own_s, [])
        if self._promotion:
            for tier_s in sorted([tier_s for tier_s in bins if tier_s < own_s], reverse=True):
                yield bins[tier_s]
        yield bins.get(math.inf, [])

    def _tier_s(self, view: ReplicaView) -> float:
        """TPOT of the tier that a replica belongs to; infinite for one that can be claimed."""
        if self._claim or not self._tpots_s:
            return self._forecast.outlook(view).tightest_s
        if view.id not in self._dealt:
            self._dealt[view.id] = self._tpots_s[len(self._dealt) % len(self._tpots_s)]
        return self._dealt[view.id]

    def _bin_s(self, tpot_s: float) -> float:
        """The class's TPOT that a request keeps: score rules may stretch it a little."""
        place = bisect.bisect_right(self._tpots_s, tpot_s * (1 + 1e-9))
        return self._tpots_s[max(0, place - 1)] if self._tpots_s else tpot_s

    def _load(self, view: ReplicaView) -> float:
        outlook = self._forecast.outlook(view)
        count = len(outlook.members)
        return view.engine.batch_time_s(count, decode_context_tokens=outlook.known_tokens, num_requests=count)

    def observe(self, end: RoundEnd) -> None:
        """Learn its length."""
        self._lengths.observe(end)
