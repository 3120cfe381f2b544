"""What a run was worth: attainment, latencies, goodput and use of the engine, recounted from its replayed schedule."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import SloOptError
from slo_opt.simulate.run import Run

Floats = NDArray[np.float64]


class IllegalRunError(SloOptError):
    """The checker refuses the schedule of a run: the simulator is wrong, no figure can be trusted."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a latency, in milliseconds; None where nothing was measured.

    Parameters
    ----------
    count : int
        Measurements.
    p50, p90, p99 : float or None
        Linear between measurements.
    """

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One SLO class, or all requests under an SLO.

    Parameters
    ----------
    name : str
        The class that `Instance.slo_of` gives a request; ``all`` for the sum.
    requests, finished : int
        Requests of the class; those that got all their tokens, on time or late.
    offered, admitted, attained : int
        Requests under an SLO; of those, promised to be on time; on time, as `evaluate` counts. 0 for best effort.
    value, offered_value : float
        Weights of the attained, and of the offered.
    attainment, attainment_admitted : float or None
        ``attained / offered`` and ``attained of the admitted / admitted``; None where there is no such request.
    ttft_ms : Percentiles
        From the release of a round to its first token, every round that got one.
    tpot_ms : Percentiles
        Mean time between tokens of each decode phase that ended, phases of a single token left out.
    itl_ms : Percentiles
        Every time between two tokens of a round.
    goodput_rps, goodput_tokens_per_s : float or None
        Attained requests, and their output tokens, a second of the run.
    output_tokens_per_s : float or None
        Output tokens a second of the run, late ones and those of unfinished requests included.
    """

    name: str
    requests: int
    finished: int
    offered: int
    admitted: int
    attained: int
    value: float
    offered_value: float
    attainment: float | None
    attainment_admitted: float | None
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    goodput_rps: float | None
    goodput_tokens_per_s: float | None
    output_tokens_per_s: float | None


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
        Seconds in batches, and their share of the span.
    num_batches, num_tokens : int
        Batches, and tokens scheduled in them.
    peak_kv_blocks, kv_blocks : int
        Most blocks held at once, and those there are.
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


def percentiles(seconds: Sequence[float] | Floats) -> Percentiles:
    """Percentiles of times given in seconds."""
    if not len(seconds):
        return Percentiles(0, None, None, None)
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Percentiles(len(seconds), p50, p90, p99)


@dataclass(slots=True)
class _Latencies:
    """Seconds, collected over the requests of a class."""

    ttft_s: list[float]
    tpot_s: list[float]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


class _Count:
    """The parts of a run that all its classes are counted from."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.evaluation = evaluation = run.evaluation
        if not evaluation.legal:
            raise IllegalRunError(f"policy {run.policy!r}: the checker refuses its run: {evaluation.violations[0]}")
        requests = run.instance.requests
        count = len(requests)
        self.classes = np.array([run.instance.slo_of(request).name for request in requests])
        self.values = np.array([run.instance.value_of(request) for request in requests])
        self.admitted = np.zeros(count, dtype=np.bool_)
        self.admitted[list(run.schedule.admitted)] = True
        self.admitted &= evaluation.counted
        self.output_tokens = np.array([request.output_tokens for request in requests])
        first_s, last_s = requests[0].arrival_s, requests[-1].arrival_s
        self.arrivals_s = last_s - first_s
        self.span_s = max(run.end_s, last_s) - first_s
        self.drain_s = max(run.end_s - last_s, 0.0)

    def of(self, name: str, chosen: NDArray[np.bool_], gaps_s: Floats) -> ClassMetrics:
        """Metrics of the chosen requests."""
        evaluation = self.evaluation
        offered, admitted = chosen & evaluation.counted, chosen & self.admitted
        attained = chosen & evaluation.attained
        latencies = self._latencies(np.flatnonzero(chosen))
        return ClassMetrics(
            name=name,
            requests=int(chosen.sum()),
            finished=int((chosen & evaluation.finished).sum()),
            offered=int(offered.sum()),
            admitted=int(admitted.sum()),
            attained=int(attained.sum()),
            value=math.fsum(self.values[attained]),
            offered_value=math.fsum(self.values[offered]),
            attainment=_ratio(int(attained.sum()), int(offered.sum())),
            attainment_admitted=_ratio(int((attained & admitted).sum()), int(admitted.sum())),
            ttft_ms=percentiles(latencies.ttft_s),
            tpot_ms=percentiles(latencies.tpot_s),
            itl_ms=percentiles(gaps_s),
            goodput_rps=_ratio(int(attained.sum()), self.span_s),
            goodput_tokens_per_s=_ratio(int(self.output_tokens[attained].sum()), self.span_s),
            # A round's first token has no gap before it.
            output_tokens_per_s=_ratio(len(gaps_s) + len(latencies.ttft_s), self.span_s),
        )

    def _latencies(self, indices: NDArray[np.int64]) -> _Latencies:
        found = _Latencies([], [])
        for index in indices.tolist():
            request, times = self.run.instance.requests[index], self.evaluation.stages[index]
            ended = len(times) if self.evaluation.finished[index] else len(times) - 1
            for k, (stage, got) in enumerate(zip(request.stages, times, strict=False)):
                steps = stage.output_tokens
                since_s = got.first_token_s
                if stage.prompt_tokens:
                    steps -= 1
                    if not math.isnan(got.first_token_s):
                        found.ttft_s.append(got.first_token_s - got.release_s)
                else:
                    since_s = times[k - 1].last_token_s
                if k < ended and steps:
                    found.tpot_s.append((got.last_token_s - since_s) / steps)
        return found


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
    count = _Count(run)
    evaluation, engine = count.evaluation, run.instance.engine
    rows = []
    for name in sorted(set(count.classes.tolist())):
        rows.append(count.of(name, count.classes == name, run.gaps_s[name]))
    counted = [run.gaps_s[row.name] for row in rows if row.offered]
    total = count.of("all", evaluation.counted, np.concatenate(counted) if counted else np.zeros(0))
    sent_away = np.zeros(len(evaluation.finished), dtype=np.bool_)
    sent_away[list(run.rejected)] = True
    unfinished = int((~evaluation.finished & ~sent_away).sum())
    return RunMetrics(
        total=total,
        classes=tuple(rows),
        cut=run.cut,
        drained=not run.cut and not unfinished,
        span_s=count.span_s,
        drain_s=count.drain_s,
        offered_rps=_ratio(total.offered, count.arrivals_s),
        busy_s=evaluation.busy_s,
        utilisation=min(1.0, _ratio(evaluation.busy_s, count.span_s) or 0.0),
        num_batches=len(run.schedule),
        num_tokens=evaluation.num_tokens,
        peak_kv_blocks=evaluation.peak_kv_blocks,
        kv_blocks=engine.kv_blocks,
        num_preemptions=run.num_preemptions,
        num_rejected=len(run.rejected),
        num_demoted=run.num_demotions,
        num_unfinished=unfinished,
        decision_ms=percentiles(run.decision_s),
        num_cached_tokens=sum(run.schedule.cached.values()),
    )
