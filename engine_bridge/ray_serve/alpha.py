"""The one module that knows Ray Serve's alpha interface: routing a request, and the number of replicas. Ray 2.60.

Every process of Ray Serve may load it, the controller too: it loads no vLLM.
"""

import asyncio
import logging
import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from slo_opt.engine_bridge.ray_serve.arrival import Arrival
from slo_opt.engine_bridge.ray_serve.demand import PRESSURE, Demand
from slo_opt.engine_bridge.ray_serve.desk import Desk, desk_of
from slo_opt.engine_bridge.router.shape import Shape
from slo_opt.engine_bridge.slo_fields import BEST_EFFORT, SloFieldError, request_slo

ID_FIELD = "slo_opt_id"
_LEAST_WAIT_S = 0.001
_log = logging.getLogger("slo_opt")


class SloRequestRouter(RequestRouter):  # type: ignore[misc]
    """Ray's request router with a routing policy of slo-opt in it.

    What Ray passes as ``request_router_kwargs`` is a `ServePlan`, as ``plan``. Nothing here raises: Ray would never
    route the request then.
    """

    max_num_routing_tasks_cap = 10_000  # one that is held back must not stop those behind it

    _desk: Desk

    def initialize_state(self, plan: dict[str, Any]) -> None:
        """Called by Ray, once."""
        self._desk = desk_of(plan)
        self._joined = asyncio.Event()
        self._own_ids: dict[str, str] = {}

    @property
    def max_num_routing_tasks(self) -> int:
        """One for each request that waits; Ray's own is two for each replica."""
        return self.max_num_routing_tasks_cap

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that the policy chooses, as soon as it does."""
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if not by_id:
            return []
        if pending_request is None:
            return [list(by_id.values())]
        self._read_stats(candidate_replicas)
        id = self._id_of(pending_request)
        while True:
            now_s = time.monotonic()
            placement = self._desk.choose(id, list(by_id), now_s)
            if placement.replica is not None:
                break
            await self._hold(max(now_s + _LEAST_WAIT_S, min(placement.wake_s, self._desk.latest_s(id))) - now_s)
            by_id = {replica.replica_id.unique_id: replica for replica in self.curr_replicas.values()} or by_id
        if placement.best_effort:
            _without_promise(pending_request)
        return [[by_id[placement.replica]]]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray when replicas come, go, or tell something."""
        joins = {replica.replica_id for replica in replicas} - set(self.curr_replicas)
        super().update_replicas(replicas)
        self._read_stats(replicas)
        self._desk.keep([replica.replica_id.unique_id for replica in replicas])
        if joins:
            self._joined.set()
            self._joined = asyncio.Event()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Ray when an answer has ended, however."""
        own = self._own_ids.pop(internal_request_id, None)
        if own is not None:
            self._desk.leave(own, time.monotonic())

    def _id_of(self, pending: PendingRequest) -> str:
        """The id under which its ingress announced it; a new one where none did."""
        announced = getattr(pending.args[0], ID_FIELD, None) if pending.args else None
        if isinstance(announced, str):
            return announced
        internal_id = pending.metadata.internal_request_id
        if internal_id not in self._own_ids:
            self._own_ids[internal_id] = self._desk.arrive(self._arrival(pending), time.monotonic())
        return self._own_ids[internal_id]

    def _arrival(self, pending: PendingRequest) -> Arrival:
        fields = getattr(pending.args[0], "vllm_xargs", None) if pending.args else None
        config = self._desk.config
        try:
            slo = request_slo(fields, config)
        except SloFieldError:  # the engine serves it without a promise
            slo = request_slo({BEST_EFFORT: True}, config)
        return Arrival(slo, Shape())

    def _read_stats(self, replicas: list[RunningReplica]) -> None:
        now_s, wall_s = time.monotonic(), time.time()
        for replica in replicas:
            self._desk.report(replica.replica_id.unique_id, replica.routing_stats, now_s, wall_s)

    async def _hold(self, seconds: float) -> None:
        joined = self._joined
        try:
            async with asyncio.timeout(seconds):
                await joined.wait()
        except TimeoutError:
            pass


def _without_promise(pending: PendingRequest) -> None:
    """Tell the engine that no promise holds."""
    request = pending.args[0] if pending.args else None
    if request is not None and hasattr(request, "vllm_xargs"):
        request.vllm_xargs = {**(request.vllm_xargs or {}), BEST_EFFORT: "true"}


def scale(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling hook: as many replicas as the pressure on them and what is held back ask for.

    Parameters
    ----------
    context : ray.serve.config.AutoscalingContext
        With the figures that replicas gave under `PRESSURE`.
    """
    told = (context.aggregated_metrics or {}).get(PRESSURE, {})
    running = set(context.running_replicas)
    pressures = [value for replica, value in told.items() if replica in running]
    held = context.total_queued_requests or 0.0
    needed = Demand().replicas_needed(pressures, held, context.target_num_replicas)
    bounded = min(max(needed, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas)
    return bounded, {}
