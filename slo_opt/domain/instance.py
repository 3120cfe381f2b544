"""An instance: the requests of a trace, what they were promised, and the engine that has to serve them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule, SloClass

TIME_TOLERANCE_S = 1e-7  # lateness that `evaluate` forgives, for the rounding of floats


@dataclass(frozen=True, slots=True)
class Instance:
    """Everything a solver, a simulator or the evaluator needs to know.

    Parameters
    ----------
    name : str
        Where the requests come from, for reports.
    requests : tuple of Request
        Sorted by arrival, ids unique.
    slo_classes : mapping of str to SloClass
        Every class that a stage names.
    engine : EngineModel
        One replica.
    score_rule : ScoreRule
        What counts as attained.
    num_replicas : int
        Equal replicas (>= 1).

    Raises
    ------
    InvalidInputError
        Ids repeat, arrivals are unsorted, a stage names an unknown class, or there is no request.

    Notes
    -----
    A request that no schedule can attain (`unservable`) is legal here: it is offered and lost.
    """

    name: str
    requests: tuple[Request, ...]
    slo_classes: Mapping[str, SloClass]
    engine: EngineModel
    score_rule: ScoreRule = ScoreRule.DSLO
    num_replicas: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "slo_classes", MappingProxyType(dict(self.slo_classes)))
        if not self.requests:
            raise InvalidInputError(f"{self.name}: no request; the trace or the window is empty")
        if self.num_replicas < 1:
            raise InvalidInputError(f"{self.name}: num_replicas is {self.num_replicas}; expected at least 1")
        seen: set[str] = set()
        last_s = 0.0
        for request in self.requests:
            if request.id in seen:
                raise InvalidInputError(f"{self.name}: request id {request.id!r} appears twice; ids must be unique")
            seen.add(request.id)
            if request.arrival_s < last_s:
                raise InvalidInputError(
                    f"{self.name}: request {request.id!r} arrives at {request.arrival_s} s, before the one above it; "
                    "sort the requests by arrival_s"
                )
            last_s = request.arrival_s
            for stage in request.stages:
                if stage.slo not in self.slo_classes:
                    raise InvalidInputError(
                        f"{self.name}: request {request.id!r} names SLO class {stage.slo!r}, which is not defined; "
                        f"defined: {', '.join(sorted(self.slo_classes)) or 'none'}"
                    )

    def slo_of(self, request: Request) -> SloClass:
        """The class that gives a request its weight and its row in reports: that of its last stage."""
        return self.slo_classes[request.stages[-1].slo]

    def value_of(self, request: Request) -> float:
        """Value of attaining the request; 0 for best effort."""
        slo = self.slo_of(request)
        return 0.0 if slo.best_effort else slo.weight

    def ttft_limit_s(self, stage: Stage) -> float:
        """Seconds from a stage's release to the deadline of its first token."""
        slo = self.slo_classes[stage.slo]
        if slo.ttft_ms is not None:
            return slo.ttft_ms / 1000
        assert slo.ttft_slowdown is not None
        return slo.ttft_slowdown * self.engine.zero_load_ttft_s(stage.prompt_tokens, stage.cached_tokens)

    def tpot_s(self, stage: Stage) -> float:
        """Seconds per output token of a stage."""
        return self.slo_classes[stage.slo].tpot_ms / 1000

    def unservable_reason(self, request: Request) -> str | None:
        """Why no schedule without speculation can attain the request, in words; None if nothing forbids it."""
        engine = self.engine
        tolerance = TTFT_TOLERANCE if self.score_rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
        context = 0
        for stage in request.stages:
            if stage.prompt_tokens:
                context = stage.cached_tokens + stage.prompt_tokens
            context += stage.output_tokens
            if context > engine.max_model_len:
                return f"{context} tokens of context exceed the engine's max_model_len of {engine.max_model_len}"
            blocks = engine.kv_blocks_for(context - 1)
            if blocks > engine.kv_blocks:
                return f"{context} tokens need {blocks} KV blocks; the engine has {engine.kv_blocks}"
            if stage.prompt_tokens:
                limit_s = self.ttft_limit_s(stage) * tolerance
                least_s = engine.least_prefill_s(stage.prompt_tokens, stage.cached_tokens)
                forgiven_s = (2 - stage.prompt_tokens // -engine.max_num_batched_tokens) * TIME_TOLERANCE_S
                if limit_s < least_s - forgiven_s:
                    return (
                        f"TTFT limit of {limit_s * 1e3:.1f} ms is below the zero-load TTFT of {least_s * 1e3:.1f} ms "
                        f"for {stage.prompt_tokens} prompt tokens"
                    )
            continued = stage.prompt_tokens == 0
            steps = stage.output_tokens - (not continued)
            step_s = engine.least_step_s(context - stage.output_tokens - continued)
            late_s = steps * (step_s - self.tpot_s(stage))
            # Each step may overlap the one before by the tolerance.
            if self.score_rule is ScoreRule.MEAN_TPOT and late_s > (steps + 1) * TIME_TOLERANCE_S:
                return f"TPOT of {self.tpot_s(stage) * 1e3:.1f} ms is below the least step of {step_s * 1e3:.1f} ms"
        return None

    def with_requests(self, requests: tuple[Request, ...]) -> "Instance":
        """The same instance over other requests."""
        return replace(self, requests=requests)
