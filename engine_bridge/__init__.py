"""slo-opt inside a serving engine: ``vllm serve ... --scheduler-cls slo_opt.engine_bridge.make_scheduler``."""

from typing import Any


def make_scheduler(*args: Any, **kwargs: Any) -> Any:
    """The scheduler that vLLM asks for; see `slo_opt.engine_bridge.scheduler.make_scheduler`."""
    from slo_opt.engine_bridge.scheduler import make_scheduler as make

    return make(*args, **kwargs)
