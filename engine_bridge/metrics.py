"""Prometheus collectors of the live scheduler. Without prometheus_client every call does nothing."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from slo_opt.engine_bridge.metrics_directory import values_in_shared_files

OUTCOMES = ("admitted", "best_effort", "refused", "aborted", "malformed")
REASONS = (
    "on_time",  # a plan keeps it on time
    "no_slo",  # best effort from the start
    "unattainable",  # no plan keeps it on time
    "too_long",  # longer than the engine's context or its KV cache
    "late",  # promised, but a token was late
    "displaced",  # promised, but given up for others
    "queue_full",  # more waiting than are planned
    "malformed",  # its SLO fields make no sense
    "aborted",  # the client left
)
DEVIATIONS = ("missing", "fewer", "more", "unplanned", "preemption")
FALLBACKS = ("exception", "overrun", "impossible_plan", "missing_hook", "unsupported")
OTHER = "other"  # whatever the lists above do not hold

_FAST_S = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_BATCH_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What one metric is called and means.

    Parameters
    ----------
    name, kind : str
        As in Prometheus; kind is ``counter``, ``gauge`` or ``histogram``.
    help : str
        One line.
    labels : tuple of str
        Label names.
    buckets : tuple of float
        Upper ends, for a histogram.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    MetricSpec(
        "slo_opt_requests_total",
        "counter",
        "Decisions on requests, by outcome and reason.",
        ("slo", "outcome", "reason"),
    ),
    MetricSpec("slo_opt_ended_total", "counter", "Requests that left the engine, by how.", ("slo", "outcome")),
    MetricSpec("slo_opt_offered_total", "counter", "Requests under an SLO that ended.", ("slo",)),
    MetricSpec(
        "slo_opt_attained_total", "counter", "Requests under an SLO that ended with every token on time.", ("slo",)
    ),
    MetricSpec("slo_opt_batch_seconds", "histogram", "Measured time of a batch.", (), _BATCH_S),
    MetricSpec("slo_opt_batch_predicted_seconds", "histogram", "Predicted time of a batch.", (), _BATCH_S),
    MetricSpec("slo_opt_batch_ratio", "histogram", "Measured over predicted time of a batch.", (), _RATIOS),
    MetricSpec("slo_opt_planner_seconds", "histogram", "Time the planner took for a step.", (), _FAST_S),
    MetricSpec("slo_opt_plan_deviations_total", "counter", "Plans that vLLM did not follow, by kind.", ("kind",)),
    MetricSpec("slo_opt_fallbacks_total", "counter", "Steps left to vLLM's own scheduling, by reason.", ("reason",)),
    MetricSpec("slo_opt_decision_log_lost_total", "counter", "Lines that the decision log could not write."),
    MetricSpec("slo_opt_running_requests", "gauge", "Requests that hold KV blocks.", ("engine",)),
    MetricSpec("slo_opt_waiting_requests", "gauge", "Requests that hold none.", ("engine",)),
    MetricSpec("slo_opt_best_effort_requests", "gauge", "Requests in the engine that are best effort.", ("engine",)),
    MetricSpec("slo_opt_free_kv_blocks", "gauge", "KV blocks free.", ("engine",)),
    MetricSpec("slo_opt_margin_ratio", "gauge", "Factor on predicted batch times.", ("engine",)),
)


class BridgeMetrics:
    """What the scheduler counts and measures, as Prometheus collectors shared by the whole process.

    No method raises. A class that is not among `classes` counts as ``custom``, an outcome, reason or kind that is not
    in this module's lists as ``other``: what users send never makes a new time series.

    Parameters
    ----------
    classes : iterable of str
        SLO classes of the configuration.
    engine_index : int
        Data-parallel rank of this engine, the label ``engine`` of the gauges.
    """

    def __init__(self, classes: Iterable[str] = (), engine_index: int = 0) -> None:
        self._classes = frozenset(classes) | {"default"}
        self._engine = str(engine_index)
        self._children: dict[tuple[str, ...], Any] = {}
        self._collectors: dict[str, Any] | None
        try:
            self._collectors = _collectors()
            for slo in sorted(self._classes | {"custom"}):
                self._child("slo_opt_offered_total", slo)
                self._child("slo_opt_attained_total", slo)
            gauges = ("running_requests", "waiting_requests", "best_effort_requests", "free_kv_blocks", "margin_ratio")
            self._gauges = [self._child(f"slo_opt_{name}", self._engine) for name in gauges]
            histograms = ("planner_seconds", "batch_seconds", "batch_predicted_seconds", "batch_ratio")
            self._histograms = [self._child(f"slo_opt_{name}") for name in histograms]
        except Exception as error:
            self._collectors = None
            if not isinstance(error, ImportError):
                _log.warning("slo-opt: no metrics: %s", error)

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
        planner, actual, predicted, ratio = self._histograms
        planner.observe(planner_s)
        if actual_s is not None:
            actual.observe(actual_s)
        if predicted_s is not None:
            predicted.observe(predicted_s)
            if actual_s is not None and predicted_s > 0:
                ratio.observe(actual_s / predicted_s)

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
        for gauge, value in zip(self._gauges, (running, waiting, best_effort, free_kv_blocks, margin), strict=True):
            if value is not None:
                gauge.set(value)

    def _slo(self, name: str) -> str:
        return name if name in self._classes else "custom"

    def _count(self, metric: str, *labels: str, amount: float = 1) -> None:
        if self._collectors is None:
            return
        try:
            self._child(metric, *labels).inc(amount)
        except Exception as error:  # the engine goes on without
            self._collectors = None
            _log.warning("slo-opt: no more metrics: %s", error)

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
        with values_in_shared_files():
            for spec in METRICS:
                options: dict[str, Any] = {"buckets": spec.buckets} if spec.kind == "histogram" else {}
                if spec.kind == "gauge":
                    options["multiprocess_mode"] = "mostrecent"
                _made[spec.name] = kinds[spec.kind](spec.name, spec.help, spec.labels, **options)
    return _made
