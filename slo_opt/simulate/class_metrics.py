"""What requests got, class by class: attainment, latencies and goodput, of a simulated or of a measured run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.domain.token_clock import Scores

Floats = NDArray[np.float64]


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


def percentiles(seconds: Sequence[float] | Floats) -> Percentiles:
    """Percentiles of times given in seconds."""
    if not len(seconds):
        return Percentiles(0, None, None, None)
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Percentiles(len(seconds), p50, p90, p99)


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``; None where there is no whole."""
    return part / whole if whole > 0 else None


class ClassCount:
    """Counts each SLO class of a run, and their sum.

    Parameters
    ----------
    instance : Instance
        What was served.
    scores : Scores
        How its requests fared.
    admitted : iterable of int
        Requests that were promised to be on time; best effort among them does not count.
    gaps_s : mapping of str to (M,) float array
        Times between tokens of a round, seconds, by SLO class of the request.
    end_s : float
        When the last token appeared, seconds from the start of the trace.

    Attributes
    ----------
    rows : tuple of ClassMetrics
        By class name; best effort has its own row.
    span_s, drain_s : float
        Seconds from the first arrival to the end or the last arrival, whichever is later; those after the last arrival.
    """

    def __init__(
        self, instance: Instance, scores: Scores, admitted: Iterable[int], gaps_s: Mapping[str, Floats], end_s: float
    ) -> None:
        requests = instance.requests
        self._instance, self._scores, self._gaps_s = instance, scores, gaps_s
        self._values = np.array([instance.value_of(request) for request in requests])
        self._admitted = np.zeros(len(requests), dtype=np.bool_)
        self._admitted[list(admitted)] = True
        self._admitted &= scores.counted
        self._output_tokens = np.array([request.output_tokens for request in requests])
        first_s, last_s = requests[0].arrival_s, requests[-1].arrival_s
        self._arrivals_s = last_s - first_s
        self.span_s = max(end_s, last_s) - first_s
        self.drain_s = max(end_s - last_s, 0.0)
        classes = np.array([instance.slo_of(request).name for request in requests])
        names = sorted(set(classes.tolist()))
        self.rows = tuple(self._count(name, classes == name, gaps_s[name]) for name in names)

    def total(self) -> ClassMetrics:
        """Over all requests under an SLO."""
        counted = [self._gaps_s[row.name] for row in self.rows if row.offered]
        return self._count("all", self._scores.counted, np.concatenate(counted) if counted else np.zeros(0))

    @property
    def offered_rps(self) -> float | None:
        """Requests under an SLO a second, from the first arrival to the last; None for a single moment."""
        return ratio(int(self._scores.counted.sum()), self._arrivals_s)

    def _count(self, name: str, chosen: NDArray[np.bool_], gaps_s: Floats) -> ClassMetrics:
        """Metrics of the chosen requests."""
        scores = self._scores
        offered, admitted = chosen & scores.counted, chosen & self._admitted
        attained = chosen & scores.attained
        latencies = self._latencies(np.flatnonzero(chosen))
        return ClassMetrics(
            name=name,
            requests=int(chosen.sum()),
            finished=int((chosen & scores.finished).sum()),
            offered=int(offered.sum()),
            admitted=int(admitted.sum()),
            attained=int(attained.sum()),
            value=math.fsum(self._values[attained]),
            offered_value=math.fsum(self._values[offered]),
            attainment=ratio(int(attained.sum()), int(offered.sum())),
            attainment_admitted=ratio(int((attained & admitted).sum()), int(admitted.sum())),
            ttft_ms=percentiles(latencies.ttft_s),
            tpot_ms=percentiles(latencies.tpot_s),
            itl_ms=percentiles(gaps_s),
            goodput_rps=ratio(int(attained.sum()), self.span_s),
            goodput_tokens_per_s=ratio(int(self._output_tokens[attained].sum()), self.span_s),
            # A round's first token has no gap before it.
            output_tokens_per_s=ratio(len(gaps_s) + len(latencies.ttft_s), self.span_s),
        )

    def _latencies(self, indices: NDArray[np.int64]) -> "_Latencies":
        found = _Latencies([], [])
        for index in indices.tolist():
            request, times = self._instance.requests[index], self._scores.stages[index]
            ended = len(times) if self._scores.finished[index] else len(times) - 1
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


@dataclass(slots=True)
class _Latencies:
    """Seconds, collected over the requests of a class."""

    ttft_s: list[float]
    tpot_s: list[float]
