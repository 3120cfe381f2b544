"""A trace: requests, the SLO classes they name and, where known, the engine and score rule they are meant for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import ENGINES
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.traces.engine_file import engine_from
from slo_opt.traces.rows import RawTrace, Row, Scalar

Arrival = TypeVar("Arrival", Request, Row)
MAX_NUMBER = 1 << 53  # in a provenance: what every JSON library keeps exactly


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests with their SLOs, and where they come from.

    Parameters
    ----------
    name : str
        For reports.
    requests : tuple of Request
        Sorted by arrival, ids unique, at least one.
    slo_classes : mapping of str to SloClass
        Every class that a stage names, by name.
    engine : str, EngineModel or None
        A built-in engine, an inline one, or none: then the caller must choose.
    score_rule : ScoreRule
        What counts as attained.
    provenance : mapping of str to scalar
        Source, licence, seed, transformations, dropped rows.

    Raises
    ------
    InvalidInputError
        Ids repeat, arrivals are unsorted, a stage names an unknown class, there is no request, or the provenance holds
        something else than text, numbers up to 2^53, booleans and None.
    """

    name: str
    requests: tuple[Request, ...]
    slo_classes: Mapping[str, SloClass]
    engine: str | EngineModel | None = None
    score_rule: ScoreRule = ScoreRule.DSLO
    provenance: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slo_classes", MappingProxyType(dict(self.slo_classes)))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        for key, slo in self.slo_classes.items():
            if key != slo.name:
                raise InvalidInputError(f"{self.name}: SLO class {slo.name!r} is filed under {key!r}; use its name")
        for key, value in self.provenance.items():
            number = isinstance(value, (int, float))
            if not (value is None or isinstance(value, str) or (number and abs(value) <= MAX_NUMBER)):  # NaN fails too
                raise InvalidInputError(
                    f"{self.name}: provenance {key!r} is {value!r}; expected text, a number, or null"
                )
        problem = ordering_problem(self.requests)
        if not self.requests:
            raise InvalidInputError(f"{self.name}: no request; the trace or the window is empty")
        if problem is not None:
            raise InvalidInputError(f"{self.name}: request {problem[0]}: {problem[1]}")
        for request in self.requests:
            for stage in request.stages:
                if stage.slo not in self.slo_classes:
                    raise InvalidInputError(
                        f"{self.name}: request {request.id!r} names SLO class {stage.slo!r}, which is not defined; "
                        f"defined: {', '.join(sorted(self.slo_classes)) or 'none'}"
                    )

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    def engine_model(self, engine: str | EngineModel | None = None) -> EngineModel:
        """The engine to use: `engine` (a built-in one, a file or a model) if given, else the trace's own.

        Raises
        ------
        InvalidInputError
            Neither names one, or the name is unknown.
        """
        chosen = self.engine if engine is None else engine
        if chosen is None:
            raise InvalidInputError(f"{self.name}: the trace names no engine; choose one: --engine {'|'.join(ENGINES)}")
        return engine_from(chosen) if isinstance(chosen, str) else chosen

    def to_instance(
        self,
        engine: str | EngineModel | None = None,
        score_rule: ScoreRule | None = None,
        num_replicas: int = 1,
    ) -> Instance:
        """The trace on an engine, ready to be solved.

        Parameters
        ----------
        engine, score_rule : optional
            Instead of the trace's own.
        num_replicas : int
            Equal replicas.

        Raises
        ------
        InvalidInputError
            No engine is known, or `num_replicas` is below 1.
        """
        return Instance(
            name=self.name,
            requests=self.requests,
            slo_classes=self.slo_classes,
            engine=self.engine_model(engine),
            score_rule=score_rule or self.score_rule,
            num_replicas=num_replicas,
        )

    def with_provenance(self, **facts: Scalar) -> "Trace":
        """The same trace with facts added to its provenance."""
        return replace(self, provenance={**self.provenance, **facts})

    def raw(self) -> RawTrace:
        """The trace without its SLOs: one row a request, prompts and outputs of its stages summed."""
        rows = []
        for number, request in enumerate(self.requests, start=1):
            thinking = request.stages[0].output_tokens if continues_decode(request) else None
            rows.append(
                Row(
                    id=request.id,
                    arrival_s=request.arrival_s,
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                    cached_tokens=request.stages[0].cached_tokens,
                    reason_ratio=None if thinking is None else thinking / request.output_tokens,
                    line=number,
                    prefix=request.prefix,
                )
            )
        return RawTrace(self.name, self.name, tuple(rows), self.provenance)


def continues_decode(request: Request) -> bool:
    """Whether the request is a thinking phase followed by a response."""
    return len(request.stages) == 2 and request.stages[1].prompt_tokens == 0


def context_tokens(request: Request) -> int:
    """Longest context of the request, in tokens: what an engine's `max_model_len` limits."""
    longest = context = 0
    for stage in request.stages:
        if stage.prompt_tokens:
            context = stage.cached_tokens + stage.prompt_tokens
        context += stage.output_tokens
        longest = max(longest, context)
    return longest


def ordering_problem(items: Sequence[Arrival]) -> tuple[int, str, str] | None:
    """Index, problem and remedy of the first item that repeats an id or arrives before its predecessor."""
    seen: set[str] = set()
    last_s = 0.0
    for index, item in enumerate(items):
        if item.id in seen:
            return index, f"id {item.id!r} appears a second time; ids must be unique", "Rename one of the two."
        if item.arrival_s < last_s:
            return (
                index,
                f"arrives at {item.arrival_s} s, before the one above it ({last_s} s); expected rows sorted by arrival",
                "Sort it: slo-opt trace convert --sort.",
            )
        seen.add(item.id)
        last_s = item.arrival_s
    return None
