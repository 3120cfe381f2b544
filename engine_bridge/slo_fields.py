"""The SLO that a request asks for, from the fields that its client sent. See docs/slo-fields.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import MAX_LIMIT_MS
from slo_opt.engine_bridge.config import (
    BEST_EFFORT_TPOT_MS,
    BEST_EFFORT_TTFT_MS,
    MAX_THINKING_TOKENS,
    BridgeConfig,
    LiveClass,
)
from slo_opt.engine_bridge.shown import shown
from slo_opt.traces.nearest import did_you_mean

PREFIX = "slo_"
CLASS = "slo_class"
TTFT = "slo_ttft_ms"
TPOT = "slo_tpot_ms"
BEST_EFFORT = "slo_best_effort"
THINKING_TPOT = "slo_thinking_tpot_ms"
THINKING_TOKENS = "slo_thinking_tokens"
FIELDS = (CLASS, TTFT, TPOT, BEST_EFFORT, THINKING_TPOT, THINKING_TOKENS)

_YES_NO: Mapping[object, bool] = {"true": True, "false": False, "1": True, "0": False}


class SloFieldError(InvalidInputError):
    """An SLO field that means nothing.

    Parameters
    ----------
    field : str
        Its name, as in the request's ``vllm_xargs``.
    problem : str
        What was found, what was expected and how to mend it.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field} {problem}")


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """What one request asks for.

    Parameters
    ----------
    slo : str
        Its class.
    tpot_s : float
        Limit per output token; of the response alone where there is a thinking limit.
    thinking_tpot_s : float or None
        Limit per token until thinking ends; None: `tpot_s` holds from the first token on.
    thinking_tokens : int or None
        Thinking ends after so many tokens at the latest; None: at the end-of-thinking token.
    ttft_s, ttft_slowdown : float or None
        Limit of the first token, absolute or as a multiple of what the prompt takes on an idle engine: one of them.
    weight : float
        Value of attaining it.
    best_effort : bool
        Under no SLO: its limits order it among its like, and nothing scores them.
    """

    slo: str
    tpot_s: float
    thinking_tpot_s: float | None = None
    thinking_tokens: int | None = None
    ttft_s: float | None = None
    ttft_slowdown: float | None = None
    weight: float = 1.0
    best_effort: bool = False

    def ttft_limit_s(self, engine: EngineModel, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds from arrival to the deadline of the first token.

        Parameters
        ----------
        engine : EngineModel
            Answers what the prompt takes on an idle engine.
        prompt_tokens, cached_tokens : int
            Tokens to prefill, and tokens that the prefix cache holds.
        """
        if self.ttft_s is not None:
            return self.ttft_s
        assert self.ttft_slowdown is not None
        return self.ttft_slowdown * engine.zero_load_ttft_s(prompt_tokens, cached_tokens)


def request_slo(fields: Mapping[str, object] | None, config: BridgeConfig) -> RequestSlo:
    """The SLO of a request.

    A class gives the limits, fields override them one by one. Fields that do not begin with ``slo_`` belong to others.

    Parameters
    ----------
    fields : mapping or None
        The request's ``vllm_xargs``, or ``SamplingParams.extra_args``.
    config : BridgeConfig
        Names the classes.

    Raises
    ------
    SloFieldError
        An unknown field or class (the nearest is suggested), a value that means nothing, or a limit that neither the
        request nor its class gives.
    """
    given = _given(fields) if fields else None
    if not given:
        return _of_class(config.classes[config.default_class])
    live = _class(given, config)
    best_effort = _flag(BEST_EFFORT, given[BEST_EFFORT]) if BEST_EFFORT in given else None
    ttft_ms = _limit_ms(TTFT, given)
    tpot_ms = _limit_ms(TPOT, given)
    thinking_tpot_ms = _limit_ms(THINKING_TPOT, given)
    thinking_tokens = _tokens(given)
    if best_effort:
        return _best_effort(live)
    if len(given) == (CLASS in given):
        return _of_class(live)
    return _merged(live, config, ttft_ms, tpot_ms, thinking_tpot_ms, thinking_tokens)


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    """The SLO fields among all."""
    found = {key: value for key, value in fields.items() if isinstance(key, str) and key.startswith(PREFIX)}
    for key in found:
        if key not in FIELDS:
            raise SloFieldError(
                _shown_key(key), f"is no SLO field. {did_you_mean(key[:64], FIELDS)}Known: {', '.join(FIELDS)}"
            )
    return found


def _class(given: Mapping[str, object], config: BridgeConfig) -> LiveClass:
    if CLASS not in given:
        return config.classes[config.default_class]
    name = given[CLASS]
    if isinstance(name, str) and name in config.classes:
        return config.classes[name]
    hint = did_you_mean(name[:64], config.classes) if isinstance(name, str) else ""
    raise SloFieldError(CLASS, f"is {shown(name)}, which is no class here. {hint}Known: {', '.join(config.classes)}")


def _merged(
    live: LiveClass,
    config: BridgeConfig,
    ttft_ms: float | None,
    tpot_ms: float | None,
    thinking_tpot_ms: float | None,
    thinking_tokens: int | None,
) -> RequestSlo:
    """What was given over what the class says."""
    slowdown = live.ttft_slowdown if ttft_ms is None else None
    ttft_ms = live.ttft_ms if ttft_ms is None else ttft_ms
    tpot_ms = live.tpot_ms if tpot_ms is None else tpot_ms
    if ttft_ms is None and slowdown is None:
        _missing(TTFT, live)
    if tpot_ms is None:
        _missing(TPOT, live)
    thinking_tpot_ms = live.thinking_tpot_ms if thinking_tpot_ms is None else thinking_tpot_ms
    if thinking_tpot_ms is None and thinking_tokens is not None:
        _missing(THINKING_TPOT, live)
    thinking_tokens = live.thinking_tokens if thinking_tokens is None else thinking_tokens
    if thinking_tpot_ms is not None and thinking_tokens is None and config.thinking_end_token_id is None:
        raise SloFieldError(
            THINKING_TOKENS, "is missing, and this server knows no token that ends thinking. Say how long it may think"
        )
    return RequestSlo(
        live.name,
        tpot_ms / 1e3,
        None if thinking_tpot_ms is None else thinking_tpot_ms / 1e3,
        thinking_tokens,
        None if ttft_ms is None else ttft_ms / 1e3,
        slowdown,
        live.weight,
    )


def _of_class(live: LiveClass) -> RequestSlo:
    if live.best_effort:
        return _best_effort(live)
    assert live.tpot_ms is not None
    return RequestSlo(
        live.name,
        live.tpot_ms / 1e3,
        None if live.thinking_tpot_ms is None else live.thinking_tpot_ms / 1e3,
        live.thinking_tokens,
        None if live.ttft_ms is None else live.ttft_ms / 1e3,
        live.ttft_slowdown,
        live.weight,
    )


def _best_effort(live: LiveClass) -> RequestSlo:
    return RequestSlo(
        live.name,
        BEST_EFFORT_TPOT_MS / 1e3,
        ttft_s=BEST_EFFORT_TTFT_MS / 1e3,
        weight=live.weight,
        best_effort=True,
    )


def _missing(field: str, live: LiveClass) -> NoReturn:
    raise SloFieldError(
        field,
        f"is missing: class {live.name!r} has no such limit, so a request with limits of its own must give it. "
        "Add the field, name a class that has the limit, or leave out all limits",
    )


def _limit_ms(field: str, given: Mapping[str, object]) -> float | None:
    if field not in given:
        return None
    number = _number(given[field])
    if number is None or not 0 < number <= MAX_LIMIT_MS:  # NaN fails too
        raise SloFieldError(
            field, f"is {shown(given[field])}; expected milliseconds above 0 and at most {MAX_LIMIT_MS:.0f} (a day)"
        )
    return number


def _tokens(given: Mapping[str, object]) -> int | None:
    if THINKING_TOKENS not in given:
        return None
    value = given[THINKING_TOKENS]
    number = _number(value)
    if number is None or not 1 <= number <= MAX_THINKING_TOKENS or number != math.floor(number):
        raise SloFieldError(
            THINKING_TOKENS, f"is {shown(value)}; expected a whole number of tokens in [1, {MAX_THINKING_TOKENS}]"
        )
    return int(number)


def _number(value: object) -> float | None:
    """A number, or text that reads as one; None for anything else."""
    kind = type(value)
    if kind is float or kind is int or (isinstance(value, (int, float)) and kind is not bool):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            return math.inf
    if isinstance(value, str) and len(value) <= 32 and value.isascii() and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _flag(field: str, value: object) -> bool:
    """Yes or no. Servers turn a JSON true into 1 or 1.0 on its way to the scheduler."""
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _YES_NO:
        return _YES_NO[value.strip().lower()]
    raise SloFieldError(field, f"is {shown(value)}; expected true or false")


def _shown_key(key: str) -> str:
    """A field name for a message: short and printable."""
    text = key if key.isprintable() else repr(key)[1:-1]
    return text if len(text) <= 64 else text[:61] + "..."
