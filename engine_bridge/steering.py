"""Makes vLLM's own scheduler follow a plan: `steered` steers ``schedule()`` and re-implements none of it.

The modules that know vLLM's names are this one (what is changed for a step), `vllm_state` (what is read) and
`vllm_probe` (what is checked at start). Names of vLLM used here (0.25 to 0.33):

- ``Scheduler``: schedule, update_from_output, finish_requests, _preempt_request, _mamba_block_aligned_split,
  need_mamba_block_aligned_split, requests, running, waiting, skipped_waiting, kv_holding_waiting, policy, _pause_state,
  max_num_scheduled_tokens, scheduler_config.long_prefill_token_threshold, num_spec_tokens, dynamic_sd_lookup,
  local_prefill_interval (0.33)
- ``Request``: request_id, client_index, status, spec_token_ids, num_tokens, num_computed_tokens, trace_headers,
  take_events; ``RequestStatus``: RUNNING, FINISHED_ABORTED; ``SchedulingPolicy``: FCFS
- ``SchedulerOutput``: num_scheduled_tokens
- ``vllm.v1.engine``: EngineCoreOutput, EngineCoreOutputs, FinishReason
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from slo_opt.engine_bridge.planned_queue import PlannedQueue, settle
from slo_opt.engine_bridge.step_plan import NO_DEVIATIONS, Deviations, StepPlan, deviations
from slo_opt.engine_bridge.vllm_probe import missing_hooks, unsupported
from slo_opt.engine_bridge.vllm_state import (
    WAITING_QUEUES,
    EngineLimits,
    RequestState,
    cached_tokens,
    can_start,
    engine_limits,
    free_kv_blocks,
    held_blocks,
    next_tokens,
    promote_blocked,
    request_state,
    waiting_requests,
)

__all__ = [
    "Deviations",
    "EngineLimits",
    "RequestState",
    "StepPlan",
    "cached_tokens",
    "engine_limits",
    "free_kv_blocks",
    "held_blocks",
    "missing_hooks",
    "next_tokens",
    "refuse",
    "request_state",
    "steered",
    "unsupported",
    "waiting_requests",
]

logger = logging.getLogger(__name__)


def steered(base: type) -> type:
    """A subclass of vLLM's `Scheduler` or `AsyncScheduler` that follows `next_plan` where it gives one.

    To override in a subclass:

    - ``next_plan() -> StepPlan | None``: the plan of the coming step; None leaves the step to vLLM.
    - ``scheduled(plan, output, deviations)``: after a planned step, with vLLM's `SchedulerOutput` (the truth) and
      `Deviations`.
    - ``steering_failed(where, error)``: `next_plan`, the imposing of its plan, or `scheduled` raised. The step was or
      is left to vLLM; an exception of vLLM's own `schedule` is not caught.
    """

    class Steered(base):  # type: ignore[misc]
        """vLLM's scheduler, following plans."""

        _token_caps: Mapping[str, int] | None = None
        _mamba_in_use = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._refused: list[tuple[int, Any]] = []

        def next_plan(self) -> StepPlan | None:
            """The plan of the coming step; None leaves it to vLLM."""
            return None

        def scheduled(self, plan: StepPlan, output: Any, deviations: Deviations) -> None:
            """Told after each planned step."""

        def steering_failed(self, where: str, error: Exception) -> None:
            """Told of an exception on our side."""
            logger.warning("slo-opt: %s failed, this step is vLLM's own", where, exc_info=error)

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            """vLLM's `schedule`, under the plan."""
            step = self._planned_step()
            if step is None:
                return super().schedule(*args, **kwargs)
            try:
                output = super().schedule(*args, **kwargs)
            finally:
                step.undo()
            try:
                self.scheduled(step.plan, output, step.compare(output.num_scheduled_tokens))
            except Exception as error:
                self.steering_failed("scheduled", error)
            return output

        def _planned_step(self) -> "_Step | None":
            """The coming step with its plan imposed; None if there is no plan, or it could not be imposed."""
            if self._pause_state.name != "UNPAUSED":
                return None
            where = "next_plan"
            try:
                promote_blocked(self)
                plan = self.next_plan()
                if plan is None:
                    return None
                where = "imposing the plan"
                return _Step(self, plan)
            except Exception as error:
                self.steering_failed(where, error)
                return None

        def _mamba_block_aligned_split(self, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> int:
            """vLLM asks here, for each request, how many tokens it may have: no more than planned."""
            caps = self._token_caps
            if caps is not None:
                cap = caps.get(request.request_id, 0)
                if cap < num_new_tokens:
                    num_new_tokens = cap
                if num_new_tokens == 0 or not self._mamba_in_use:
                    return num_new_tokens
            return int(super()._mamba_block_aligned_split(request, num_new_tokens, *args, **kwargs))

        def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
            """vLLM's `update_from_output`, with the answers to refused requests."""
            outputs = super().update_from_output(*args, **kwargs)
            if self._refused:
                _merge(outputs, self._refused)
                self._refused = []
            return outputs

    Steered.__name__ = Steered.__qualname__ = f"Steered{base.__name__}"
    return Steered


def refuse(scheduler: Any, request: Any, reason: str) -> None:
    """End a request without serving it; its client is told at the next `update_from_output`.

    vLLM's engine calls that for empty batches too, and a finished request makes it run one: an idle engine answers at
    once. To be called on a `steered` scheduler, between steps or from `next_plan`.

    Parameters
    ----------
    scheduler : a `steered` scheduler
    request : vLLM's Request
        Running or waiting. Unknown or finished ones are left alone.
    reason : str
        The `stop_reason` that the client sees; the finish reason is "abort".
    """
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    if request.request_id not in scheduler.requests:
        return
    scheduler.finish_requests(request.request_id, type(request.status).FINISHED_ABORTED)
    answer = EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ABORT,
        stop_reason=reason,
        events=request.take_events(),
        trace_headers=request.trace_headers,
    )
    scheduler._refused.append((request.client_index, answer))


def _merge(outputs: dict[int, Any], answers: list[tuple[int, Any]]) -> None:
    """Add answers to the outputs of a step, by client."""
    from vllm.v1.engine import EngineCoreOutputs

    for client, answer in answers:
        if client not in outputs:
            outputs[client] = EngineCoreOutputs()
        outputs[client].outputs = [*outputs[client].outputs, answer]


class _SameDraftLength:
    """A `dynamic_sd_lookup` that changes no draft length.

    With one in place vLLM does not pad a resumed decode to the full draft length.
    """

    def __init__(self, draft_tokens: int) -> None:
        self._draft_tokens = draft_tokens

    def __getitem__(self, num_requests: int) -> int:
        return self._draft_tokens


class _Step:
    """One planned step: imposes the plan on construction, `undo` restores vLLM's own state."""

    def __init__(self, scheduler: Any, plan: StepPlan) -> None:
        self.plan = plan
        self._scheduler = scheduler
        self._saved: list[tuple[Any, str, Any]] = []
        self._queues: list[Any] = []
        self._preempt(plan)
        self._running = scheduler.running
        self._is_running = type(self._running[0].status).RUNNING if self._running else None
        self._caps: dict[str, int] = {}
        self._started: list[Any] = []
        self._dropped: list[str] = []
        try:
            self._impose(plan)
        except BaseException:
            self.undo()
            raise

    def _preempt(self, plan: StepPlan) -> None:
        """Drop the KV of the running requests that the plan preempts."""
        scheduler = self._scheduler
        named = (scheduler.requests.get(name) for name in plan.preempt)
        dropped = [request for request in named if request is not None and request.status.name == "RUNNING"]
        if not dropped:
            return
        now_s = time.monotonic()
        scheduler.running = [request for request in scheduler.running if request not in dropped]
        for request in dropped:
            scheduler._preempt_request(request, now_s)

    def _impose(self, plan: StepPlan) -> None:
        scheduler = self._scheduler
        requests = scheduler.requests
        preempted = set(plan.preempt)
        first, starting = [], []
        caps = self._caps
        for name, tokens in plan.tokens:
            request = requests.get(name)
            if request is None or tokens < 1 or name in preempted or name in caps:
                continue
            if request.status is self._is_running:
                first.append(request)
            elif can_start(request):
                starting.append(request)
            else:
                continue
            caps[name] = tokens
        others = self._others(plan) if len(first) < len(self._running) else []
        self._set(scheduler, "running", first + others)
        queues = [(name, getattr(scheduler, name)) for name in WAITING_QUEUES if hasattr(scheduler, name)]
        self._queues = [queue for _, queue in queues]
        popped: set[str] = set()
        for name, queue in queues:
            self._set(scheduler, name, PlannedQueue(queue, starting if name == "waiting" else (), popped))
        self._set(scheduler, "policy", type(scheduler.policy).FCFS)  # the victim is the last in `running`
        budget = min(scheduler.max_num_scheduled_tokens, sum(caps.values()))
        self._set(scheduler, "max_num_scheduled_tokens", budget)
        if scheduler.scheduler_config.long_prefill_token_threshold:
            self._set(scheduler.scheduler_config, "long_prefill_token_threshold", 0)
        if getattr(scheduler, "scheduler_reserve_full_isl", False):
            self._set(scheduler, "scheduler_reserve_full_isl", False)  # the plan knows what is to fit
        if getattr(scheduler, "local_prefill_interval", 1) > 1:
            self._set(scheduler, "local_prefill_interval", 1)
        if starting and scheduler.num_spec_tokens and scheduler.dynamic_sd_lookup is None:
            self._set(scheduler, "dynamic_sd_lookup", _SameDraftLength(scheduler.num_spec_tokens))
        self._set(scheduler, "_mamba_in_use", scheduler.need_mamba_block_aligned_split)
        self._set(scheduler, "need_mamba_block_aligned_split", True)
        self._set(scheduler, "_token_caps", caps)

    def _others(self, plan: StepPlan) -> list[Any]:
        """The running requests outside the batch, best victims last."""
        others = []
        for request in self._running:
            if request.request_id not in self._caps:
                others.append(request)
                drafts = request.spec_token_ids
                # The worker keeps drafted tokens that vLLM has not seen for one step only.
                if drafts and drafts[0] == -1:
                    request.spec_token_ids = []
        if plan.victims:
            rank = {name: -place for place, name in enumerate(plan.victims)}
            others.sort(key=lambda request: rank.get(request.request_id, -len(rank)))
        return others

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Restore vLLM's state; `running` in the order of before, with those that started at its end."""
        scheduler = self._scheduler
        after = scheduler.running
        for owner, name, value in reversed(self._saved):
            setattr(owner, name, value)
        self._saved = []
        before = self._running
        kept = [request for request in before if request.status is self._is_running]
        self._started = after[len(kept) :]
        scheduler.running = kept + self._started
        if self._started:
            settle(self._queues, self._started)
        if len(kept) < len(before):
            self._dropped = [request.request_id for request in before if request.status is not self._is_running]

    def compare(self, scheduled: Mapping[str, int]) -> Deviations:
        """What vLLM scheduled beside the plan."""
        if not self._dropped and self._caps == scheduled and len(self._caps) == len(self.plan.tokens):
            return NO_DEVIATIONS
        planned = {name: tokens for name, tokens in self.plan.tokens if tokens > 0}
        ended = [one.request_id for one in self._started if one.num_computed_tokens >= one.num_tokens]
        return deviations(planned, scheduled, self._dropped, ended)
