"""What a replay was worth, in the figures of a simulated run, and how faithful its load was."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slo_opt.replay.call import Outcome
from slo_opt.simulate.class_metrics import ClassCount, ClassMetrics, Percentiles, percentiles, ratio

if TYPE_CHECKING:
    from slo_opt.replay.result import ReplayRun


@dataclass(frozen=True, slots=True)
class ReplayMetrics:
    """Everything reported of a replay. Fields that a simulated run has too mean the same.

    Parameters
    ----------
    total : ClassMetrics
        Over all requests under an SLO. Admitted are those that were not refused: a client learns of no other promise.
    classes : tuple of ClassMetrics
        By class name; best effort has its own row and is in no sum.
    cut, drained : bool
        Stopped early; every request that was not refused got all its tokens.
    span_s, drain_s : float
        Seconds from the first arrival to the last token or the last arrival, whichever is later; of those, the ones
        after the last arrival.
    offered_rps : float or None
        Requests under an SLO a second, from the first arrival to the last; None for a single moment.
    num_rejected, num_failed, num_unfinished : int
        Requests that the server refused; requests that failed; requests neither finished nor refused.
    num_prompt_tokens, num_output_tokens : int
        Prompt tokens of the calls that got a token back, and tokens received, best effort included.
    num_cached_tokens : int or None
        Prompt tokens that the server found in its prefix cache; None where it does not say.
    output_tokens_per_s, tokens_per_s : float or None
        Output tokens, and output and prompt tokens, a second of the span, best effort included.
    num_calls, num_estimated, num_throttled : int
        Calls sent; of those, with tokens counted by events; held back by the limit on calls under way.
    lateness_ms : Percentiles
        How long after its time each call was sent: the generator's own doing.
    max_lateness_ms : float or None
        The worst of it.
    late : bool
        Whether its 99th percentile is above the limit: the load was not that of the trace.
    """

    total: ClassMetrics
    classes: tuple[ClassMetrics, ...]
    cut: bool
    drained: bool
    span_s: float
    drain_s: float
    offered_rps: float | None
    num_rejected: int
    num_failed: int
    num_unfinished: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int | None
    output_tokens_per_s: float | None
    tokens_per_s: float | None
    num_calls: int
    num_estimated: int
    num_throttled: int
    lateness_ms: Percentiles
    max_lateness_ms: float | None
    late: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, no NaN."""
        fields = asdict(self)
        fields["classes"] = list(fields["classes"])
        return fields


def replay_metrics(run: "ReplayRun") -> ReplayMetrics:
    """Count what a replay was worth.

    Parameters
    ----------
    run : ReplayRun
        Of any server.
    """
    outcomes = [request.outcome for request in run.requests]
    calls = [served for request in run.requests for served in request.rounds]
    end_s = max((served.tokens_s[-1] for served in calls if served.tokens_s), default=0.0)
    kept = [i for i, outcome in enumerate(outcomes) if outcome is not Outcome.REFUSED]
    count = ClassCount(run.instance, run.scores, kept, run.gaps_s(), end_s)
    refused, finished = outcomes.count(Outcome.REFUSED), outcomes.count(Outcome.FINISHED)
    unfinished = len(outcomes) - refused - finished
    prompts = sum(each.prompt_tokens for each in calls if each.tokens_s)  # what was refused was not computed
    outputs = sum(len(each.tokens_s) for each in calls)
    cached = [each.cached_tokens for each in calls if each.cached_tokens is not None]
    lateness_s = [each.sent_s - each.due_s for each in calls]
    late_ms = percentiles(lateness_s)
    return ReplayMetrics(
        total=count.total(),
        classes=count.rows,
        cut=run.cut,
        drained=not run.cut and not unfinished,
        span_s=count.span_s,
        drain_s=count.drain_s,
        offered_rps=count.offered_rps,
        num_rejected=refused,
        num_failed=outcomes.count(Outcome.FAILED),
        num_unfinished=unfinished,
        num_prompt_tokens=prompts,
        num_output_tokens=outputs,
        num_cached_tokens=sum(cached) if cached else None,
        output_tokens_per_s=ratio(outputs, count.span_s),
        tokens_per_s=ratio(prompts + outputs, count.span_s),
        num_calls=len(calls),
        num_estimated=sum(each.estimated for each in calls),
        num_throttled=run.num_throttled,
        lateness_ms=late_ms,
        max_lateness_ms=1e3 * max(lateness_s) if lateness_s else None,
        late=late_ms.p99 is not None and late_ms.p99 > 1e3 * run.options.max_lateness_s,
    )
