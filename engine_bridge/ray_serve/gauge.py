"""How hard pressed a replica is, from the metrics of its engine and the limits of the requests in it."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from slo_opt.engine_bridge.config import BridgeConfig, config_from_environment
from slo_opt.engine_bridge.ray_serve.demand import Interval, pressure
from slo_opt.engine_bridge.slo_fields import SloFieldError, request_slo

_LINE = re.compile(
    r"^(slo_opt_batch_seconds_(?:sum|count)|slo_opt_requests_total|vllm:kv_cache_usage_perc)"
    r"(\{[^\n]*\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)
_DECLINED = ('outcome="best_effort"', 'outcome="refused"')
_OF_NOBODY = ('reason="no_slo"', 'reason="malformed"', 'reason="aborted"')


class PressureGauge:
    """Reads the pressure on a replica since it was read last.

    Parameters
    ----------
    config : BridgeConfig, optional
        Names the SLO classes; default: as the scheduler reads it.
    """

    def __init__(self, config: BridgeConfig | None = None) -> None:
        self._config = config_from_environment() if config is None else config
        self._tpots_s: Counter[float] = Counter()
        self._last: dict[str, float] | None = None
        self._tightest_s = math.inf  # of all that were here since the last reading

    @contextmanager
    def holds(self, fields: Mapping[str, object] | None) -> Iterator[None]:
        """A request with these fields is here until the block ends."""
        tpot_s = self._tpot_s(fields)
        self._tpots_s[tpot_s] += 1
        self._tightest_s = min(self._tightest_s, tpot_s)
        try:
            yield
        finally:
            self._tpots_s[tpot_s] -= 1
            if not self._tpots_s[tpot_s]:
                del self._tpots_s[tpot_s]

    def read(self, metrics: str) -> float:
        """The pressure since the last reading; 0 at the first.

        Parameters
        ----------
        metrics : str
            Prometheus' text format; where slo-opt does not schedule, nothing in it counts.
        """
        sums = _sums(metrics)
        last, self._last = self._last, sums
        tightest_s, self._tightest_s = self._tightest_s, min(self._tpots_s, default=math.inf)
        if last is None:
            return 0.0
        new = {name: max(0.0, value - last.get(name, 0.0)) for name, value in sums.items()}
        return pressure(
            Interval(
                batches=new["batches"],
                busy_s=new["busy_s"],
                decided=new["decided"],
                declined=new["declined"],
                kv_share=sums["kv_share"],
                tightest_tpot_s=tightest_s,
            )
        )

    def _tpot_s(self, fields: Mapping[str, object] | None) -> float:
        try:
            slo = request_slo(fields, self._config)
        except SloFieldError:
            return math.inf
        if slo.best_effort:
            return math.inf
        return slo.tpot_s if slo.thinking_tpot_s is None else min(slo.tpot_s, slo.thinking_tpot_s)


def _sums(metrics: str) -> dict[str, float]:
    found = dict.fromkeys(("batches", "busy_s", "decided", "declined", "kv_share"), 0.0)
    for name, labels, text in _LINE.findall(metrics):
        try:
            value = float(text)
        except ValueError:
            continue
        if not (math.isfinite(value) and value >= 0):
            continue
        if name == "slo_opt_batch_seconds_sum":
            found["busy_s"] += value
        elif name == "slo_opt_batch_seconds_count":
            found["batches"] += value
        elif name == "vllm:kv_cache_usage_perc":
            found["kv_share"] = max(found["kv_share"], min(1.0, value))
        elif name == "slo_opt_requests_total" and not any(word in labels for word in _OF_NOBODY):
            found["decided"] += value
            if any(word in labels for word in _DECLINED):
                found["declined"] += value
    return found
