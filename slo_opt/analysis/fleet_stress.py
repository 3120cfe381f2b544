"""The same traffic under stress, on any engine type: a fleet planned on yesterday has to stand tomorrow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.traces.trace import context_tokens
from slo_opt.traces.transforms import scale


@dataclass(frozen=True, slots=True)
class Stress:
    """Factors on the traffic and on the engine.

    Parameters
    ----------
    name : str
        For reports.
    lengths : float
        On prompt, cached and output tokens; less for a request that would outgrow the engine's context.
    rate : float
        On the arrival rate.
    batch_times : float
        On every batch time. Promises stay those of the engine as it was, and policies are not told.

    Raises
    ------
    InvalidInputError
        A factor is not in [0.1, 10].
    """

    name: str
    lengths: float = 1.0
    rate: float = 1.0
    batch_times: float = 1.0

    def __post_init__(self) -> None:
        for factor in (self.lengths, self.rate, self.batch_times):
            if not 0.1 <= factor <= 10:
                raise InvalidInputError(f"stress {self.name!r}: a factor is {factor}; expected one in [0.1, 10]")


AS_IS = Stress("as it is")
STRESSES = (
    AS_IS,
    Stress("lengths +20 %", lengths=1.2),
    Stress("rate +50 %", rate=1.5),
    Stress("batch times +10 %", batch_times=1.1),
)


@dataclass(frozen=True, slots=True)
class PromisedInstance(Instance):
    """An instance whose first-token limits are those of another engine.

    What was promised as a multiple of the zero-load TTFT does not change with the engine that serves it.

    Parameters
    ----------
    promised_on : EngineModel or None
        The engine of the promise; None for its own.
    """

    promised_on: EngineModel | None = None

    def ttft_limit_s(self, stage: Stage) -> float:
        """Seconds from a stage's release to the deadline of its first token."""
        slo = self.slo_classes[stage.slo]
        if slo.ttft_ms is not None:
            return slo.ttft_ms / 1000
        assert slo.ttft_slowdown is not None
        return slo.ttft_slowdown * (self.promised_on or self.engine).zero_load_ttft_s(
            stage.prompt_tokens, stage.cached_tokens
        )


def on_engine(instance: Instance, engine: EngineModel) -> Instance:
    """The same requests under the same promises on another engine."""
    if engine == instance.engine:
        return instance
    promised = instance.promised_on if isinstance(instance, PromisedInstance) else None
    return PromisedInstance(
        name=instance.name,
        requests=instance.requests,
        slo_classes=instance.slo_classes,
        engine=engine,
        score_rule=instance.score_rule,
        num_replicas=instance.num_replicas,
        promised_on=promised or instance.engine,
    )


def slower(engine: EngineModel, factor: float) -> EngineModel:
    """The engine with all its batch times multiplied."""
    if factor == 1:
        return engine
    pieces = tuple(
        replace(
            piece,
            per_token_s=piece.per_token_s * factor,
            base_s=piece.base_s * factor,
            per_draft_step_s=piece.per_draft_step_s * factor,
        )
        for piece in engine.pieces
    )
    return replace(
        engine,
        pieces=pieces,
        decode_context_s=engine.decode_context_s * factor,
        prefill_pair_s=engine.prefill_pair_s * factor,
        request_s=engine.request_s * factor,
        host_s=engine.host_s * factor,
    )


def stressed(instance: Instance, stress: Stress) -> Instance:
    """The instance with longer requests that arrive faster; the engine is left as it is."""
    requests = scale(instance.requests, stress.rate)
    if stress.lengths != 1:
        most = instance.engine.max_model_len
        requests = tuple(_longer(request, stress.lengths, most) for request in requests)
    return instance.with_requests(requests)


def _longer(request: Request, factor: float, most_tokens: int) -> Request:
    """The request with all its lengths multiplied, as far as the context holds them."""
    context = context_tokens(request)
    if context > most_tokens:
        return request  # no engine could hold it before
    grown = _scaled(request, lambda tokens: math.ceil(tokens * factor - 1e-9))
    if factor > 1 and context_tokens(grown) > most_tokens:
        return _scaled(request, lambda tokens: tokens * most_tokens // context)
    return grown


def _scaled(request: Request, times: Callable[[int], int]) -> Request:
    stages = tuple(
        replace(
            stage,
            prompt_tokens=times(stage.prompt_tokens),
            output_tokens=times(stage.output_tokens),
            cached_tokens=times(stage.cached_tokens),
        )
        for stage in request.stages
    )
    return replace(request, stages=stages)
