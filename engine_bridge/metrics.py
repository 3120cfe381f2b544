"""Prometheus collectors of the live scheduler. Without prometheus_client every call does nothing."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from slo_opt.engine_bridge.metric_specs import DEVIATIONS, FALLBACKS, METRICS, OTHER, OUTCOMES, REASONS
from slo_opt.engine_bridge.metrics_directory import values_in_shared_files

_log = logging.getLogger(__name__)


class BridgeMetrics:
    """What the scheduler counts and measures, as Prometheus collectors shared by the whole process.

    No method raises. A class that is not among `classes` counts as ``custom``, an outcome, reason or kind that is not
    in `metric_specs` as ``other``: what users send never makes a new time series.

    Parameters
    ----------
    classes : iterable of str
        SLO classes of the configuration.
    engine_index : int
        Data-parallel rank of this engine, the label ``engine`` of the gauges.
    """

    def __init__(self, classes: Iterable[str] = (), engine_index: int = 0) -> None:
        self._classes = frozenset(classes) | {"default"}
        self._children: dict[tuple[str, ...], Any] = {}
        self._collectors: dict[str, Any] | None = None
        try:
            self._collectors = _collectors()
            for slo in sorted(self._classes | {"custom"}):  # from 0, so that a rate sees the first request
                self._child("slo_opt_offered_total", slo)
                self._child("slo_opt_attained_total", slo)
            engine = str(engine_index)
            self._gauges = [self._child(spec.name, engine) for spec in METRICS if spec.kind == "gauge"]
            self._histograms = [self._child(spec.name) for spec in METRICS if spec.kind == "histogram"]
        except ImportError:
            self._collectors = None
        except Exception as error:
            self._stop(error)

    def decided(self, slo: str, outcome: str, reason: str) -> None:
        """A request was admitted, made best effort or refused."""
        self._count("slo_opt_requests_total", self._slo(slo), _one_of(OUTCOMES, outcome), _one_of(REASONS, reason))

    def ended(self, slo: str, attained: bool | None, outcome: str) -> None:
        """A request left the engine; `attained` is None for one that was best effort from the start."""
        name = self._slo(slo)
        self._count("slo_opt_ended_total", name, _one_of(OUTCOMES, outcome))
        if attained is not None:
            self._count("slo_opt_offered_total", name)
            if attained:
                self._count("slo_opt_attained_total", name)

    def step(self, planner_s: float, predicted_s: float | None, actual_s: float | None) -> None:
        """A step was planned, and the batch before it measured: None where it was not."""
        if self._collectors is None:
            return
        try:
            batch, predicted, ratio, planner = self._histograms
            planner.observe(planner_s)
            if actual_s is not None:
                batch.observe(actual_s)
            if predicted_s is not None:
                predicted.observe(predicted_s)
                if actual_s is not None and predicted_s > 0:
                    ratio.observe(actual_s / predicted_s)
        except Exception as error:
            self._stop(error)

    def deviation(self, kind: str) -> None:
        """A plan that vLLM did not follow."""
        self._count("slo_opt_plan_deviations_total", _one_of(DEVIATIONS, kind))

    def fallback(self, reason: str) -> None:
        """A step that was left to vLLM."""
        self._count("slo_opt_fallbacks_total", _one_of(FALLBACKS, reason))

    def lost_lines(self, lines: int = 1) -> None:
        """Lines that the decision log could not write."""
        self._count("slo_opt_decision_log_lost_total", amount=lines)

    def state(
        self, running: int, waiting: int, free_kv_blocks: int, margin: float, best_effort: int | None = None
    ) -> None:
        """How the engine stands after a step; `best_effort` is left as it was where it is None."""
        if self._collectors is None:
            return
        values = (running, waiting, best_effort, free_kv_blocks, margin)
        try:
            for gauge, value in zip(self._gauges, values, strict=True):
                if value is not None:
                    gauge.set(value)
        except Exception as error:
            self._stop(error)

    def _slo(self, name: str) -> str:
        return name if name in self._classes else "custom"

    def _count(self, metric: str, *labels: str, amount: float = 1) -> None:
        if self._collectors is None:
            return
        try:
            self._child(metric, *labels).inc(amount)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """The engine goes on without metrics."""
        self._collectors = None
        _log.warning("slo-opt: no metrics from here on: %r", error)

    def _child(self, metric: str, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            assert self._collectors is not None
            collector = self._collectors[metric]
            with values_in_shared_files():
                child = self._children[key] = collector.labels(*labels) if labels else collector
        return child


def _one_of(known: tuple[str, ...], name: str) -> str:
    return name if name in known else OTHER


_made: dict[str, Any] = {}


def _collectors() -> dict[str, Any]:
    """The collectors by name, made once a process."""
    if not _made:
        import prometheus_client

        kinds: dict[str, Callable[..., Any]] = {
            "counter": prometheus_client.Counter,
            "gauge": prometheus_client.Gauge,
            "histogram": prometheus_client.Histogram,
        }
        # Where this module is loaded a second time, the first one's collectors hold their names.
        present = getattr(prometheus_client.REGISTRY, "_names_to_collectors", {})
        made = {}
        with values_in_shared_files():
            for spec in METRICS:
                options: dict[str, Any] = {"buckets": spec.buckets} if spec.kind == "histogram" else {}
                if spec.kind == "gauge":
                    options["multiprocess_mode"] = "mostrecent"
                found = present.get(spec.name)
                made[spec.name] = found or kinds[spec.kind](spec.name, spec.help, spec.labels, **options)
        _made.update(made)
    return _made
