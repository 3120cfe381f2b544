"""The named scenarios as instances at any request rate: from published traces where they are at hand, else generated.

With a data folder, lengths and arrivals are those of the traces: coder, chatbot, PolyServe and QoServe take a window of
the Azure 2023 traces and rescale its arrival times, so that every rate has the same requests; reasoning takes the first
requests of the ServeGen trace, stretched; summarizer takes arXiv lengths under Poisson arrivals; ToolLLM has no public
trace and is generated. Seed 0 is the trace as it is; any other seed shuffles the lengths over the same arrivals.

Without one, all are drawn by `slo_opt.traces.generate`. Of a drawn trace of a higher rate each request is kept or left
out at random, so that the requests of a lower rate are among those of a higher one and bursts keep their length.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.domain.slo import ScoreRule
from slo_opt.simulate.real_rows import DATA, data_digest, real_rows
from slo_opt.traces.arrivals import MAX_REQUESTS
from slo_opt.traces.generate import generate
from slo_opt.traces.scenarios import SCENARIOS, apply_scenario, checked_seed, scenario_named
from slo_opt.traces.trace import Trace
from slo_opt.traces.transforms import merge, scale

_MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Workload:
    """A scenario offered to an engine at a rate.

    Parameters
    ----------
    scenario : str
        One of `slo_opt.traces.scenarios.SCENARIOS`.
    engine : EngineModel
        Requests over its context are dropped before the rate is set.
    rate : float
        Requests a second, as offered: their number over the time in which they arrive is exactly that, up to half a
        request.
    duration_s : float
        Seconds in which they arrive. A window of a trace is so many seconds of the *trace*: it holds the same requests
        at every rate and passes faster at a higher one.
    seed : int
        Equal arguments give equal instances.
    data_dir : Path or None
        Folder with ``traces/`` or ``formats/`` of the published traces; None to generate.
    score_rule : ScoreRule
        What counts as attained.
    """

    scenario: str
    engine: EngineModel
    rate: float
    duration_s: float = 300.0
    seed: int = 0
    data_dir: Path | None = None
    score_rule: ScoreRule = ScoreRule.DSLO

    def __post_init__(self) -> None:
        scenario_named(self.scenario)
        checked_seed(self.seed)
        if not 0 < self.rate < math.inf:
            raise InvalidInputError(f"rate is {self.rate} requests/s; expected a number above 0")
        if not 0 < self.duration_s <= 1e6:
            raise InvalidInputError(f"duration is {self.duration_s} s; expected seconds in (0, 1e6]")
        if self.rate * self.duration_s > MAX_REQUESTS:
            raise InvalidInputError(
                f"{self.rate} requests/s for {self.duration_s} s is more than {MAX_REQUESTS} requests; lower one"
            )

    def trace(self) -> Trace:
        """The requests with their SLOs, arrivals from 0."""
        if self.scenario != _MIXED:
            return self._part(self.scenario, self.rate, windowed=self.windowed)
        parts = list(SCENARIOS[_MIXED].parts)
        return merge(_MIXED, [self._part(part, self.rate / len(parts), windowed=False) for part in parts])

    def instance(self) -> Instance:
        """The requests on the engine.

        Raises
        ------
        InvalidInputError
            The engine's context holds none of them, or a trace is missing in the data folder.
        TraceFormatError
            A trace is damaged.
        """
        return self.trace().to_instance(self.engine, self.score_rule)

    @property
    def source(self) -> str:
        """Where lengths and arrivals come from, for reports."""
        real = [DATA[part].title for part in self._parts if self.data_dir is not None and part in DATA]
        drawn = [part for part in self._parts if self.data_dir is None or part not in DATA]
        return "; ".join([*real, *([f"generated: {', '.join(drawn)}"] if drawn else [])])

    @property
    def digest(self) -> str | None:
        """Fingerprint of the files that it is read from; None if it is generated."""
        return None if self.data_dir is None else data_digest(self.data_dir, self._parts)

    @property
    def windowed(self) -> bool:
        """Whether it is a window of a trace, with the same requests at every rate."""
        return self.data_dir is not None and self.scenario in DATA and DATA[self.scenario].windowed

    @property
    def _parts(self) -> tuple[str, ...]:
        return tuple(SCENARIOS[_MIXED].parts) if self.scenario == _MIXED else (self.scenario,)

    def _part(self, name: str, rate: float, *, windowed: bool) -> Trace:
        """One scenario that is not a union; a window only where the whole workload is one."""
        count = max(1, round(rate * self.duration_s))
        if self.data_dir is None or name not in DATA:
            return _thinned(name, self.engine, rate, count, self.duration_s, self.seed)
        span_s = self.duration_s if windowed else None
        whole = _assigned(name, self.engine, self.data_dir, self.seed, span_s)
        if windowed:
            return _stretched(whole, whole.requests, self.duration_s, rate)
        requests = _repeated(whole.requests, count + 1)
        return _stretched(whole, requests[:count], requests[count].arrival_s, rate)


def _stretched(trace: Trace, requests: tuple[Request, ...], span_s: float, rate: float) -> Trace:
    """`requests`, which arrive in ``[0, span_s)``, at `rate` requests a second."""
    return replace(trace, requests=scale(requests, rate * span_s / len(requests)))


def _repeated(requests: tuple[Request, ...], count: int) -> tuple[Request, ...]:
    """The first `count` of the requests, which begin anew when they end."""
    if count <= len(requests):
        return requests
    # One mean gap between the last of a pass and the first of the next.
    period_s = requests[-1].arrival_s * len(requests) / max(1, len(requests) - 1) or 1.0
    again = list(requests)
    for lap in range(1, -(-count // len(requests))):
        again += [replace(r, id=f"{r.id}-lap{lap}", arrival_s=r.arrival_s + lap * period_s) for r in requests]
    return tuple(again)


@lru_cache(maxsize=16)
def _assigned(name: str, engine: EngineModel, data_dir: Path, seed: int, span_s: float | None) -> Trace:
    """Real rows from the start of the window on (only those in it, with `span_s`), under the SLOs of the scenario."""
    rows = real_rows(name, engine, data_dir, seed, span_s)
    return replace(apply_scenario(rows, name, engine, seed), name=name)


@lru_cache(maxsize=16)
def _drawn(name: str, engine: EngineModel, rate: float, duration_s: float, seed: int) -> tuple[Trace, tuple[int, ...]]:
    """A generated trace of that rate or more, and its requests in the order in which they are kept."""
    for more in (1, 16, 256):  # a short time may hold no burst
        try:
            trace = generate(name, rate=more * rate, duration_s=duration_s, seed=seed, engine=engine)
            break
        except InvalidInputError:
            if more == 256:
                raise
    order = np.random.default_rng([seed, 1]).permutation(len(trace.requests))
    return replace(trace, name=name), tuple(order.tolist())


def _thinned(name: str, engine: EngineModel, rate: float, count: int, duration_s: float, seed: int) -> Trace:
    """`count` requests, in about `duration_s`, of a generated trace of a higher rate."""
    # Few ceilings, far above the rate, so that neighbouring rates are parts of one trace.
    ceiling = max(4.0 ** (1 + math.ceil(math.log(rate, 4))), 16 / duration_s)
    trace, order = _drawn(name, engine, ceiling, duration_s, seed)
    while len(order) < count:  # little arrives where bursts are few
        ceiling *= 2
        trace, order = _drawn(name, engine, ceiling, duration_s, seed)
    kept = tuple(trace.requests[index] for index in sorted(order[:count]))
    return _stretched(trace, kept, duration_s, rate)
