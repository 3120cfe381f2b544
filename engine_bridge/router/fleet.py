"""The replicas together, and the policy that chooses among them."""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.router.metrics import RouterMetrics
from slo_opt.engine_bridge.router.replica import Replica
from slo_opt.engine_bridge.router.shape import Shape
from slo_opt.policies.interface import RoundEnd
from slo_opt.routing.interface import Placement, RoutingPolicy

_log = logging.getLogger("slo_opt")
_PATIENCE_S = 1.0  # nobody is up: one that only lost a connection is back in less
_LEAST_WAIT_S = 0.001  # a policy that wants to be asked again at once must not stop everything else


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a request goes.

    Parameters
    ----------
    replica : Replica or None
        None: nowhere, it was held back for as long as may be.
    best_effort : bool
        Without a promise.
    held_s : float
        How long it was held back before.
    """

    replica: Replica | None
    best_effort: bool = False
    held_s: float = 0.0


class Fleet:
    """Chooses a replica for each request, and holds back those that the policy holds back.

    Parameters
    ----------
    replicas : sequence of Replica
        In the order in which policies see them.
    policy : RoutingPolicy
        Chooses. Where it fails, the replica with the fewest requests is taken, and the failure counted.
    metrics : RouterMetrics
        Where decisions are counted.
    max_hold_s : float
        How long one request may be held back.
    """

    def __init__(
        self, replicas: Sequence[Replica], policy: RoutingPolicy, metrics: RouterMetrics, max_hold_s: float
    ) -> None:
        self.replicas = tuple(replicas)
        self.policy = policy
        self.num_held = 0
        self._metrics = metrics
        self._max_hold_s = max_hold_s
        self._joined = asyncio.Event()
        self._by_id = {replica.id: replica for replica in self.replicas}
        self._complained = False

    @property
    def up(self) -> list[Replica]:
        """Those that requests may go to."""
        return [replica for replica in self.replicas if replica.health.up]

    def joined(self) -> None:
        """A replica came up: whoever is held back is asked about again."""
        self._joined.set()
        self._joined = asyncio.Event()

    def candidates(self, shape: Shape, tried: Collection[str]) -> list[Replica]:
        """Replicas that can take a request now.

        A model that no replica is known to offer, or a prompt that is too long for all, leaves nobody out: the replica
        says what is wrong better than a router can.
        """
        found = [replica for replica in self.replicas if replica.health.up and replica.id not in tried]
        if shape.model is not None:
            found = [replica for replica in found if shape.model in replica.model_ids()] or found
        if shape.prompt_tokens:
            longest = [replica.books.view.engine.max_model_len for replica in found]
            large = [replica for replica, most in zip(found, longest, strict=True) if shape.prompt_tokens < most]
            found = large or found
        return found

    async def place(self, job: LiveJob, shape: Shape, tried: Collection[str]) -> Placed | None:
        """Choose a replica, as soon as the policy does; None where there is none to choose from.

        Parameters
        ----------
        job : LiveJob
            The request.
        shape : Shape
            Its model and its size.
        tried : collection of str
            Ids of replicas that refused it or failed.
        """
        loop = asyncio.get_running_loop()
        began_s = held_until_s = loop.time()
        limit_s = began_s + self._max_hold_s
        while True:
            candidates = self.candidates(shape, tried)
            now_s = loop.time()
            if not candidates:
                if tried or now_s >= began_s + _PATIENCE_S:
                    return None
                await self._hold(began_s + _PATIENCE_S)
                held_until_s = loop.time()
                continue
            placement = self._ask(job, candidates, now_s)
            if placement.replica is not None:
                return Placed(self._by_id[placement.replica], placement.best_effort, held_until_s - began_s)
            if now_s >= limit_s:
                return Placed(None)
            await self._hold(max(now_s + _LEAST_WAIT_S, min(placement.wake_s, limit_s)))
            held_until_s = loop.time()

    def observe(self, end: RoundEnd) -> None:
        """Let the policy learn from a request that was served."""
        try:
            self.policy.observe(end)
        except Exception as error:
            self._complain(error)

    def _ask(self, job: LiveJob, candidates: Sequence[Replica], now_s: float) -> Placement:
        began_s = time.perf_counter()
        views = [replica.books.look() for replica in candidates]
        try:
            placement = self.policy.route(job, views, now_s)
            if placement.replica is not None and placement.replica not in {view.id for view in views}:
                raise LookupError(f"it chose {placement.replica!r}, which was not offered")
        except Exception as error:
            self._complain(error)
            placement = Placement(fewest_requests(candidates).id)
        self._metrics.decided(time.perf_counter() - began_s)
        return placement

    async def _hold(self, until_s: float) -> None:
        joined = self._joined
        self.num_held += 1
        try:
            async with asyncio.timeout_at(until_s):
                await joined.wait()
        except TimeoutError:
            pass
        finally:
            self.num_held -= 1

    def _complain(self, error: Exception) -> None:
        self._metrics.policy_failed()
        if not self._complained:
            self._complained = True
            _log.warning(
                "slo-opt: the routing policy failed, it counts, and the fewest requests decide: %r",
                error,
                exc_info=error,
            )


def fewest_requests(replicas: Iterable[Replica]) -> Replica:
    """The replica with the fewest requests; the first of equals."""
    return min(replicas, key=lambda replica: replica.books.view.num_requests)
