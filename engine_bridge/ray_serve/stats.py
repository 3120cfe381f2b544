"""What a replica tells routers of its engine, as a dictionary that Ray carries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slo_opt.engine_bridge.router.reports import EngineReport

KEY = "slo_opt"
_MOST = 1 << 40
_COUNTS = ("running", "waiting", "free_kv_blocks", "kv_blocks", "block_size_tokens")


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One report.

    Parameters
    ----------
    at_s : float
        When, in seconds of the replica's wall clock.
    report : EngineReport
        The engine.
    max_model_len : int or None
        Longest context.
    """

    at_s: float
    report: EngineReport
    max_model_len: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, under a key of its own: Ray's own statistics lie beside it."""
        return {KEY: {"at_s": self.at_s, "max_model_len": self.max_model_len, **asdict(self.report)}}


def read_stats(stats: object) -> ReplicaStats | None:
    """A report from what Ray carried; None where there is none. What means nothing in it is left out."""
    told = stats.get(KEY) if isinstance(stats, Mapping) else None
    if not isinstance(told, Mapping):
        return None
    at_s = _number(told.get("at_s"))
    if at_s is None:
        return None
    share = _number(told.get("kv_share"))
    counts = {name: _count(told.get(name)) for name in _COUNTS}
    for name in ("kv_blocks", "block_size_tokens"):
        counts[name] = counts[name] or None
    report = EngineReport(kv_share=None if share is None else min(1.0, share), **counts)
    return ReplicaStats(at_s, report, _count(told.get("max_model_len")) or None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST else None  # NaN is not


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None
