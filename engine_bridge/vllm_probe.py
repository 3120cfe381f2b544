"""Whether the vLLM at hand has what steering needs: asked once, at start.

Nothing is decided by version numbers. The names are those that `steering` and `vllm_state` list.
"""

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

# Names that `Scheduler.schedule` must mention: what steering changes has an effect only where vLLM looks at it.
_SCHEDULE = (
    "running",
    "waiting",
    "max_num_scheduled_tokens",
    "policy",
    "need_mamba_block_aligned_split",
    "_mamba_block_aligned_split",
    "spec_token_ids",
    "long_prefill_token_threshold",
    "peek_request",
    "pop_request",
    "_preempt_request",
    "dynamic_sd_lookup",
)
_SCHEDULER = (  # attributes that its constructor must set
    "requests",
    "kv_cache_manager",
    "num_spec_tokens",
    "num_lookahead_tokens",
    "max_num_running_reqs",
    "max_model_len",
    "current_step",
    "scheduler_config",
    "block_size",
    "_pause_state",
)
_ONE_OF = (("kv_holding_waiting", "skipped_waiting"), ("deferred_waiting", "skipped_waiting"))
_METHODS = {  # and the parameters that we give by position
    "schedule": 0,
    "update_from_output": 2,
    "finish_requests": 2,
    "_preempt_request": 2,
    "_mamba_block_aligned_split": 2,
    "_is_blocked_waiting_status": 1,
}
_PROMOTE = ("_handle_blocked_waiting_request", "_try_promote_blocked_waiting_request")
_REQUEST = (
    "request_id",
    "status",
    "client_index",
    "num_output_placeholders",
    "num_computed_tokens",
    "num_prompt_tokens",
    "max_tokens",
    "spec_token_ids",
    "block_hashes",
    "skip_reading_prefix_cache",
)


def missing_hooks(base: type) -> list[str]:
    """What `base`, vLLM's scheduler class, lacks for steering; empty if nothing.

    Parameters
    ----------
    base : type
        `Scheduler` or `AsyncScheduler`.
    """
    missing = [f"{base.__name__}.{name}" for name, count in _METHODS.items() if not _takes(base, name, count)]
    if not any(hasattr(base, name) for name in _PROMOTE):
        missing.append(f"{base.__name__}.{_PROMOTE[0]}")
    asked = _names(base, "schedule")
    missing += [f"{base.__name__}.schedule does not use {name}" for name in _SCHEDULE if name not in asked]
    built = _names(base, "__init__")
    missing += [f"{base.__name__} has no {name}" for name in _SCHEDULER if name not in built]
    missing += [f"{base.__name__} has no {either[0]}" for either in _ONE_OF if not built.intersection(either)]
    return missing + _missing_elsewhere()


def _missing_elsewhere() -> list[str]:
    """What is missing outside the scheduler."""
    try:
        from vllm.v1.core.block_pool import BlockPool
        from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.sched.request_queue import SchedulingPolicy
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
        from vllm.v1.request import Request, RequestStatus
    except ImportError as error:
        return [str(error)]
    missing = [f"Request has no {name}" for name in _REQUEST if name not in _names(Request, "__init__")]
    for kind, names in (
        (Request, ("num_tokens", "num_output_tokens", "take_events")),
        (RequestStatus, ("RUNNING", "WAITING", "PREEMPTED", "FINISHED_ABORTED")),
        (SchedulingPolicy, ("FCFS",)),
        (FinishReason, ("ABORT",)),
        (KVCacheManager, ("get_blocks",)),
        (BlockPool, ("get_num_free_blocks",)),
    ):
        missing += [f"{kind.__name__}.{name}" for name in names if not hasattr(kind, name)]
    if not _takes(KVCacheCoordinator, "find_longest_cache_hit", 2):
        missing.append("KVCacheCoordinator.find_longest_cache_hit")
    answer = ("request_id", "new_token_ids", "finish_reason", "stop_reason", "events", "trace_headers")
    for struct, fields in ((EngineCoreOutput, answer), (EngineCoreOutputs, ("outputs",))):
        missing += [f"{struct.__name__}.{name}" for name in fields if name not in struct.__annotations__]
    return missing


def _takes(owner: type, name: str, count: int) -> bool:
    """Whether a method exists that can be called with `count` arguments by position."""
    method = inspect.getattr_static(owner, name, None)
    if method is None:
        return False
    bound = isinstance(method, staticmethod)
    try:
        inspect.signature(getattr(owner, name)).bind(*[None] * (count + (not bound)))
    except TypeError:
        return False
    return True


def _names(owner: type, method: str) -> set[str]:
    """Attributes and globals that a method mentions, in the class and in those it inherits from."""
    found: set[str] = set()
    for kind in owner.__mro__:
        function = kind.__dict__.get(method)
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if code is not None:
            for part in _nested(code):
                found.update(part.co_names)
    return found


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def unsupported(vllm_config: Any) -> str | None:
    """Why an engine of this configuration is not steered, in words for its user; None if it is.

    Parameters
    ----------
    vllm_config : vLLM's VllmConfig
    """
    model = vllm_config.model_config
    parallel = vllm_config.parallel_config
    cache = vllm_config.cache_config
    reasons = (
        (vllm_config.kv_transfer_config is not None, "a KV connector moves KV blocks (--kv-transfer-config)"),
        (
            getattr(vllm_config, "ec_transfer_config", None) is not None,
            "an encoder-cache connector is in use (--ec-transfer-config)",
        ),
        (model.runner_type == "pooling", "the model is served for pooling, which generates no tokens"),
        (getattr(model, "is_diffusion", False), "a diffusion model does not decode token by token"),
        (getattr(vllm_config, "is_mm_encoder_only", False), "the engine runs an encoder only"),
        (model.is_encoder_decoder, "the model is an encoder-decoder"),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism keeps more than two batches in flight (--pipeline-parallel-size)",
        ),
        (
            not vllm_config.scheduler_config.enable_chunked_prefill,
            "prompts cannot be prefilled in chunks (--no-enable-chunked-prefill)",
        ),
        (
            getattr(cache, "mamba_cache_mode", "none") == "align",
            "the model's Mamba state is cached at block boundaries, which chunks of our choice would miss",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)
