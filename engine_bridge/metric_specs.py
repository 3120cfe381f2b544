"""The metrics of the live scheduler: names, labels and the values that labels take."""

from dataclasses import dataclass

from slo_opt.engine_bridge.step_plan import DEVIATION_KINDS

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
DEVIATIONS = DEVIATION_KINDS
FALLBACKS = (
    "exception",  # our side failed
    "overrun",  # a decision took longer than planner_limit_ms
    "impossible_plan",  # the policy asked for what the engine cannot do
    "stuck",  # nothing was scheduled for a while although somebody waits
    "idle",  # the policy serves nobody although somebody waits
    "unsupported",  # a feature of vLLM that is not planned for is in use
    "missing_hook",  # a vLLM that cannot be steered
)
OTHER = "other"  # whatever the lists above do not hold

_FAST_S = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_BATCH_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)


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
