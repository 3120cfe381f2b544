"""Metrics of the router. Without prometheus_client every call does nothing."""

from collections.abc import Iterable
from typing import Any

from slo_opt.engine_bridge.metric_specs import OTHER, MetricSpec

ANSWERS = (
    "finished",  # a replica's answer, to its end
    "broken",  # a replica's answer that broke off after its first byte
    "refused",  # 429 or 503 of the last replica that was asked
    "unavailable",  # 502, 503 or 504 of the router's own
    "invalid",  # 4xx of the router's own
    "left",  # the client went away
)
REASONS = (
    "refused",  # answered 429 or 503
    "unreachable",  # no connection
    "disconnected",  # the connection was lost before the first byte
    "timeout",  # no byte in time
    "server_error",  # answered 5xx
    "malformed",  # answered something that is no HTTP
    "redirect",  # answered 3xx
)
_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_TTFT_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

METRICS = (
    MetricSpec("slo_opt_router_requests_total", "counter", "Requests by class and answer.", ("slo", "answer")),
    MetricSpec("slo_opt_router_offered_total", "counter", "Requests under an SLO that ended.", ("slo",)),
    MetricSpec(
        "slo_opt_router_attained_total",
        "counter",
        "Requests under an SLO that ended with every token on time, as they passed the router.",
        ("slo",),
    ),
    MetricSpec("slo_opt_router_hops_total", "counter", "Requests sent on to another replica, by reason.", ("reason",)),
    MetricSpec(
        "slo_opt_router_failures_total",
        "counter",
        "Requests that a replica refused or failed before their first byte.",
        ("replica", "reason"),
    ),
    MetricSpec("slo_opt_router_policy_failures_total", "counter", "Decisions that the policy failed to make."),
    MetricSpec("slo_opt_router_in_flight", "gauge", "Requests at a replica.", ("replica",)),
    MetricSpec("slo_opt_router_up", "gauge", "Whether requests may go to a replica.", ("replica",)),
    MetricSpec("slo_opt_router_held", "gauge", "Requests that are held back."),
    MetricSpec(
        "slo_opt_router_overhead_seconds",
        "histogram",
        "From the last byte of a request to its sending, without the time that it was held back.",
        (),
        _SECONDS,
    ),
    MetricSpec("slo_opt_router_decision_seconds", "histogram", "Time the policy took to choose.", (), _SECONDS),
    MetricSpec("slo_opt_router_ttft_seconds", "histogram", "From arrival to the first byte.", ("slo",), _TTFT_S),
)


class RouterMetrics:
    """What the router counts and measures, in a registry of its own.

    What users send never makes a new time series: a class that is not among `classes` counts as ``custom``.

    Parameters
    ----------
    classes : iterable of str
        SLO classes of the configuration.
    replicas : iterable of str
        Their ids.
    """

    def __init__(self, classes: Iterable[str] = (), replicas: Iterable[str] = ()) -> None:
        self._classes = frozenset(classes)
        self._registry: Any = None
        self._metrics: dict[str, Any] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        try:
            import prometheus_client
        except ImportError:
            return
        self._registry = prometheus_client.CollectorRegistry()
        kinds = {
            "counter": prometheus_client.Counter,
            "gauge": prometheus_client.Gauge,
            "histogram": prometheus_client.Histogram,
        }
        for spec in METRICS:
            options: dict[str, Any] = {"buckets": spec.buckets} if spec.kind == "histogram" else {}
            self._metrics[spec.name] = kinds[spec.kind](
                spec.name, spec.help, spec.labels, registry=self._registry, **options
            )
        for slo in sorted(self._classes | {"custom"}):  # from 0, so that a rate sees the first request
            self._child("slo_opt_router_offered_total", slo)
            self._child("slo_opt_router_attained_total", slo)
        for replica in replicas:
            self._child("slo_opt_router_in_flight", replica)

    @property
    def available(self) -> bool:
        """Whether there is anything to show."""
        return self._registry is not None

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        text: bytes = generate_latest(self._registry)
        return text

    def answered(self, slo: str, answer: str) -> None:
        """A request left the router: `answer` is one of `ANSWERS`."""
        self._add("slo_opt_router_requests_total", self._slo(slo), answer if answer in ANSWERS else OTHER)

    def scored(self, slo: str, attained: bool) -> None:
        """A request under an SLO ended."""
        name = self._slo(slo)
        self._add("slo_opt_router_offered_total", name)
        if attained:
            self._add("slo_opt_router_attained_total", name)

    def failed(self, replica: str, reason: str) -> None:
        """A replica refused a request or failed: `reason` is one of `REASONS`."""
        self._add("slo_opt_router_failures_total", replica, reason if reason in REASONS else OTHER)

    def hopped(self, reason: str) -> None:
        """A request is sent on to another replica."""
        self._add("slo_opt_router_hops_total", reason if reason in REASONS else OTHER)

    def policy_failed(self) -> None:
        """The policy raised, or chose what was not offered."""
        self._add("slo_opt_router_policy_failures_total")

    def decided(self, seconds: float) -> None:
        """The policy has chosen."""
        self._observe("slo_opt_router_decision_seconds", seconds)

    def sent(self, seconds: float) -> None:
        """A request goes to its first replica, so long after its last byte came."""
        self._observe("slo_opt_router_overhead_seconds", seconds)

    def began(self, slo: str, seconds: float) -> None:
        """The first byte of an answer came."""
        self._observe("slo_opt_router_ttft_seconds", seconds, self._slo(slo))

    def state(self, in_flight: Iterable[tuple[str, int, bool]], held: int) -> None:
        """How the fleet stands: id, requests and whether it is up, of each replica."""
        if self._registry is None:
            return
        for replica, count, up in in_flight:
            self._child("slo_opt_router_in_flight", replica).set(count)
            self._child("slo_opt_router_up", replica).set(up)
        self._child("slo_opt_router_held").set(held)

    def _slo(self, name: str) -> str:
        return name if name in self._classes else "custom"

    def _add(self, metric: str, *labels: str) -> None:
        if self._registry is not None:
            self._child(metric, *labels).inc()

    def _observe(self, metric: str, seconds: float, *labels: str) -> None:
        if self._registry is not None:
            self._child(metric, *labels).observe(seconds)

    def _child(self, metric: str, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            found = self._metrics[metric]
            child = self._children[key] = found.labels(*labels) if labels else found
        return child
