"""Statistics of a trace: load, burstiness and lengths, per SLO class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.traces.rows import RawTrace, Scalar
from slo_opt.traces.trace import Trace

WINDOW_S = 10.0
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Mean and quantiles of token counts."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int

    @classmethod
    def of(cls, tokens: list[int]) -> "LengthStatistics":
        """Statistics of at least one count."""
        p50, p90, p99 = (float(value) for value in np.percentile(tokens, [50, 90, 99]))
        return cls(float(np.mean(tokens)), p50, p90, p99, max(tokens))


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """Requests of one SLO class (that of their last stage), or all of them where there are no SLOs.

    Parameters
    ----------
    slo : str
        Name of the class; ``all`` for the whole trace.
    ttft, tpot : str
        Its limits in words; empty for the whole trace.
    requests : int
        How many.
    share : float
        Of all requests, in [0, 1].
    stages : float
        Mean number of stages a request.
    prompt_tokens, output_tokens : LengthStatistics
        Per request, all stages.
    """

    slo: str
    ttft: str
    tpot: str
    requests: int
    share: float
    stages: float
    prompt_tokens: LengthStatistics
    output_tokens: LengthStatistics


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Statistics of a trace.

    Parameters
    ----------
    name, engine, score_rule : str or None
        As in the trace; an engine by name.
    requests : int
        How many.
    duration_s : float
        First arrival to last.
    rate : float or None
        Requests a second over that time; None for a single arrival time.
    interarrival_cv : float or None
        Coefficient of variation of the gaps; None with fewer than three requests or no gaps.
    peak_to_mean : float or None
        Most arrivals in one window of 10 s over the mean; None for traces shorter than two windows.
    classes : tuple of ClassStatistics
        All requests first, then by class.
    provenance : dict
        As in the trace.
    """

    name: str
    engine: str | None
    score_rule: str | None
    requests: int
    duration_s: float
    rate: float | None
    interarrival_cv: float | None
    peak_to_mean: float | None
    classes: tuple[ClassStatistics, ...]
    provenance: dict[str, Scalar]


def interarrival_cv(arrivals_s: Floats) -> float | None:
    """Coefficient of variation of the gaps between sorted arrivals."""
    gaps = np.diff(arrivals_s)
    if len(gaps) < 2 or gaps.mean() == 0:
        return None
    return float(gaps.std() / gaps.mean())


def peak_to_mean(arrivals_s: Floats, window_s: float = WINDOW_S) -> float | None:
    """Most arrivals in a window, over the mean of the whole windows between first and last arrival."""
    since_first = arrivals_s - arrivals_s[0]
    windows = int(since_first[-1] // window_s)
    if windows < 2:
        return None
    counts = np.bincount((since_first[since_first < windows * window_s] // window_s).astype(int), minlength=windows)
    return float(counts.max() / counts.mean())


def describe(trace: Trace | RawTrace) -> TraceStatistics:
    """Statistics of a trace, or of raw rows that carry no SLOs."""
    if isinstance(trace, RawTrace):
        arrivals_s = np.array([row.arrival_s for row in trace.rows])
        items = [("all", 1, row.prompt_tokens, row.output_tokens) for row in trace.rows]
        engine = score_rule = None
    else:
        arrivals_s = np.array([request.arrival_s for request in trace.requests])
        items = [
            (request.stages[-1].slo, len(request.stages), request.prompt_tokens, request.output_tokens)
            for request in trace.requests
        ]
        engine = trace.engine if trace.engine is None or isinstance(trace.engine, str) else trace.engine.name
        score_rule = trace.score_rule.value
    duration_s = float(arrivals_s[-1] - arrivals_s[0])
    groups = [("all", ("", ""), items)]
    if isinstance(trace, Trace):
        groups += [
            (slo.name, _limits(trace, slo.name), group)
            for slo in trace.slo_classes.values()
            if (group := [item for item in items if item[0] == slo.name])
        ]
    return TraceStatistics(
        name=trace.name,
        engine=engine,
        score_rule=score_rule,
        requests=len(items),
        duration_s=duration_s,
        rate=(len(items) - 1) / duration_s if duration_s else None,
        interarrival_cv=interarrival_cv(arrivals_s),
        peak_to_mean=peak_to_mean(arrivals_s),
        classes=tuple(_class_statistics(name, *limits, group, len(items)) for name, limits, group in groups),
        provenance=dict(trace.provenance),
    )


def _class_statistics(
    name: str, ttft: str, tpot: str, group: list[tuple[str, int, int, int]], total: int
) -> ClassStatistics:
    return ClassStatistics(
        slo=name,
        ttft=ttft,
        tpot=tpot,
        requests=len(group),
        share=len(group) / total,
        stages=sum(item[1] for item in group) / len(group),
        prompt_tokens=LengthStatistics.of([item[2] for item in group]),
        output_tokens=LengthStatistics.of([item[3] for item in group]),
    )


def _limits(trace: Trace, name: str) -> tuple[str, str]:
    slo = trace.slo_classes[name]
    if slo.best_effort:
        return "none", "none"
    ttft = f"{slo.ttft_slowdown:g}x" if slo.ttft_ms is None else f"{slo.ttft_ms:g} ms"
    return ttft, f"{slo.tpot_ms:g} ms"
