"""What a run was worth: attainment, latencies, goodput and use of the engine, recounted from its replayed schedule."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slo_opt.domain.errors import SloOptError
from slo_opt.simulate.class_metrics import ClassCount, ClassMetrics, Percentiles, percentiles, ratio
from slo_opt.simulate.run import Run

__all__ = ["ClassMetrics", "IllegalRunError", "Percentiles", "RunMetrics", "percentiles", "run_metrics"]


class IllegalRunError(SloOptError):
    """The checker refuses the schedule of a run: the simulator is wrong, no figure can be trusted."""


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """Everything reported of a run.

    Parameters
    ----------
    total : ClassMetrics
        Over all requests under an SLO.
    classes : tuple of ClassMetrics
        By class name; best effort has its own row and is in no sum.
    cut, drained : bool
        Stopped early; every request that was not rejected got all its tokens.
    span_s, drain_s : float
        Seconds from the first arrival to the last batch's end or the last arrival, whichever is later; of those, the
        ones after the last arrival.
    offered_rps : float or None
        Requests under an SLO a second, from the first arrival to the last; None for a single moment.
    busy_s, utilisation : float
        Seconds in batches, over all replicas, and their share of the seconds that these were there.
    num_batches, num_tokens : int
        Batches, and tokens scheduled in them.
    peak_kv_blocks, kv_blocks : int
        Most blocks held at once on a replica, and those there are on the largest.
    num_preemptions, num_rejected, num_demoted, num_unfinished : int
        KV caches dropped; requests sent away; requests made best effort; requests neither finished nor rejected.
    decision_ms : Percentiles
        Wall-clock time of the policy's decisions on the machine of the run: the only figure that differs between runs.
    num_cached_tokens : int
        Prompt tokens found in the prefix cache.
    """

    total: ClassMetrics
    classes: tuple[ClassMetrics, ...]
    cut: bool
    drained: bool
    span_s: float
    drain_s: float
    offered_rps: float | None
    busy_s: float
    utilisation: float
    num_batches: int
    num_tokens: int
    peak_kv_blocks: int
    kv_blocks: int
    num_preemptions: int
    num_rejected: int
    num_demoted: int
    num_unfinished: int
    decision_ms: Percentiles
    num_cached_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, no NaN."""
        fields = asdict(self)
        fields["classes"] = list(fields["classes"])
        return fields


def run_metrics(run: Run) -> RunMetrics:
    """Count what a run was worth.

    Parameters
    ----------
    run : Run
        Of any policy.

    Raises
    ------
    IllegalRunError
        The checker finds that the schedule breaks a rule.

    References
    ----------
    Goodput as requests a second under their SLO: DistServe, arXiv 2401.09670, section 2.
    """
    evaluation = run.evaluation
    if not evaluation.legal:
        raise IllegalRunError(f"policy {run.policy!r}: the checker refuses its run: {evaluation.violations[0]}")
    count = ClassCount(run.instance, evaluation, run.schedule.admitted, run.gaps_s, run.end_s)
    total = count.total()
    sent_away = np.zeros(len(evaluation.finished), dtype=np.bool_)
    sent_away[list(run.rejected)] = True
    unfinished = int((~evaluation.finished & ~sent_away).sum())
    return RunMetrics(
        total=total,
        classes=count.rows,
        cut=run.cut,
        drained=not run.cut and not unfinished,
        span_s=count.span_s,
        drain_s=count.drain_s,
        offered_rps=count.offered_rps,
        busy_s=evaluation.busy_s,
        utilisation=min(1.0, ratio(evaluation.busy_s, run.replica_s) or 0.0),
        num_batches=len(run.schedule),
        num_tokens=evaluation.num_tokens,
        peak_kv_blocks=evaluation.peak_kv_blocks,
        kv_blocks=run.kv_blocks,
        num_preemptions=run.num_preemptions,
        num_rejected=len(run.rejected),
        num_demoted=run.num_demotions,
        num_unfinished=unfinished,
        decision_ms=percentiles(run.decision_s),
        num_cached_tokens=sum(run.schedule.cached.values()),
    )
