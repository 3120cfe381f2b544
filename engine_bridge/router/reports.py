"""What an engine reports of itself at /metrics."""

import math
import re
from dataclasses import dataclass

from slo_opt.engine_bridge.calibrate_server import cache_labels

_LINE = re.compile(
    r"^(vllm:num_requests_running|vllm:num_requests_waiting|vllm:(?:kv|gpu)_cache_usage_perc"
    r"|slo_opt_running_requests|slo_opt_waiting_requests|slo_opt_free_kv_blocks)(?:\{[^\n]*\})? ([^\s]+)",
    re.MULTILINE,
)
_MOST = 1 << 40


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The state of a replica as its engine tells it; None where it does not. Engines of one server are added up.

    Parameters
    ----------
    running, waiting : int or None
        Requests with and without KV blocks.
    kv_share : float or None
        Share of the KV cache in use, in [0, 1].
    free_kv_blocks : int or None
        KV blocks free, where slo-opt schedules; for engines that do not tell the share.
    kv_blocks, block_size_tokens : int or None
        The whole cache: blocks, and tokens in one.
    """

    running: int | None = None
    waiting: int | None = None
    kv_share: float | None = None
    free_kv_blocks: int | None = None
    kv_blocks: int | None = None
    block_size_tokens: int | None = None


def read_report(text: str) -> EngineReport:
    """A report from Prometheus' text format; lines that mean nothing are passed over.

    vLLM's own figures go first: those of slo-opt's scheduler stand still while nothing runs.
    """
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        number = _number(value)
        if number is not None:
            found.setdefault(name, []).append(number)
    shares = found.get("vllm:kv_cache_usage_perc") or found.get("vllm:gpu_cache_usage_perc")
    labels = cache_labels(text)
    engines = sum(line.startswith("vllm:cache_config_info{") for line in text.splitlines())
    blocks = _count(labels.get("num_gpu_blocks"))
    return EngineReport(
        running=_sum(found.get("vllm:num_requests_running") or found.get("slo_opt_running_requests")),
        waiting=_sum(found.get("vllm:num_requests_waiting") or found.get("slo_opt_waiting_requests")),
        kv_share=min(1.0, sum(shares) / len(shares)) if shares else None,
        free_kv_blocks=_sum(found.get("slo_opt_free_kv_blocks")),
        kv_blocks=None if blocks is None else min(_MOST, blocks * engines),
        block_size_tokens=_count(labels.get("block_size")),
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= _MOST else None


def _sum(values: list[float] | None) -> int | None:
    return round(sum(values)) if values else None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and 0 < int(text) <= _MOST else None
