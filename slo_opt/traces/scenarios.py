"""Named scenarios: which SLOs the rows of a raw trace are given.

References
----------
SLOs-Serve, arXiv 2504.08784 (six scenarios; tight is 3x zero-load TTFT and 50 ms, loose 5x and 100 ms);
PolyServe, arXiv 2507.17769 (TTFT and TPOT mix); Niyama / QoServe, arXiv 2503.22562 (QoS tiers).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.request import MAX_TOKENS, Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.traces.engine_file import portable
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.rows import RawTrace, Row, Scalar
from slo_opt.traces.trace import Trace, context_tokens

LARGE_MODEL_BILLIONS = 30.0  # parameters from which SLOs-Serve doubles every TPOT
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)b(?![a-z])")
Stages = Callable[[Row, Generator], tuple[Stage, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one kind within a scenario.

    Parameters
    ----------
    share : float
        Probability that a row which names no part belongs to this one.
    stages : callable
        Stages of a row.
    """

    share: float
    stages: Stages


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named way to give SLOs to the rows of a raw trace.

    Parameters
    ----------
    name, summary : str
        What users type, and one line about it.
    classes : tuple of SloClass
        The SLO classes its stages name.
    parts : mapping of str to Part
        By the name that a row's ``slo`` column may hold.
    doubles_tpot : bool
        Whether the TPOT of large models is doubled, as in SLOs-Serve.
    """

    name: str
    summary: str
    classes: tuple[SloClass, ...]
    parts: Mapping[str, Part]
    doubles_tpot: bool = True


def _single(slo: str) -> Stages:
    """One prefill and one decode."""

    def stages(row: Row, rng: Generator) -> tuple[Stage, ...]:
        return (Stage(row.prompt_tokens, row.output_tokens, slo, row.cached_tokens),)

    return stages


def _thinking(row: Row, rng: Generator) -> tuple[Stage, ...]:
    """A thinking phase and the response. Without a column `reason_ratio`, Beta(2.1, 0.9): mean 0.70 as in ServeGen."""
    ratio = float(rng.beta(2.1, 0.9)) if row.reason_ratio is None else row.reason_ratio
    thinking = min(max(round(row.output_tokens * ratio), 1), row.output_tokens - 1)
    if thinking < 1:
        return (Stage(row.prompt_tokens, row.output_tokens, "response", row.cached_tokens),)
    return (
        Stage(row.prompt_tokens, thinking, "thinking", row.cached_tokens),
        Stage(0, row.output_tokens - thinking, "response"),
    )


def _tool_rounds(row: Row, rng: Generator) -> tuple[Stage, ...]:
    """Two to five rounds that share the row's output; each tool result is prefilled, the context before it is cached.

    Tool results are log-normal with median 100 tokens in [16, 400], tool times with median 0.5 s in [0.05, 5].
    """
    rounds = min(int(rng.integers(2, 6)), row.output_tokens)
    cuts = np.sort(rng.choice(row.output_tokens - 1, rounds - 1, replace=False)) + 1
    outputs = np.diff([0, *cuts.tolist(), row.output_tokens]).tolist()
    results = np.clip(rng.lognormal(np.log(100), 0.6, rounds), 16, 400).round().astype(int).tolist()
    pauses = np.clip(rng.lognormal(np.log(0.5), 0.7, rounds), 0.05, 5).round(3).tolist()
    stages: list[Stage] = []
    context = row.cached_tokens
    for k, output in enumerate(outputs):
        prompt = row.prompt_tokens if k == 0 else results[k]
        slo = "tool-answer" if k == rounds - 1 else "tool-loop"
        context = min(context, MAX_TOKENS)
        stages.append(Stage(prompt, output, slo, context, pauses[k] if k else 0.0))
        context += prompt + output
    return tuple(stages)


_CHAT = SloClass("chat", tpot_ms=100, ttft_slowdown=5)
_CODE = SloClass("code", tpot_ms=50, ttft_slowdown=5)
_SUMMARY = SloClass("summary", tpot_ms=100, ttft_slowdown=3)
_TOOL = (SloClass("tool-loop", tpot_ms=50, ttft_slowdown=3), SloClass("tool-answer", tpot_ms=100, ttft_slowdown=3))
_REASON = (SloClass("thinking", tpot_ms=50, ttft_slowdown=3), SloClass("response", tpot_ms=100, ttft_slowdown=3))
_FIVE: dict[str, Stages] = {
    "chatbot": _single("chat"),
    "coder": _single("code"),
    "summarizer": _single("summary"),
    "toolllm": _tool_rounds,
    "reasoning": _thinking,
}


def _only(name: str, summary: str, *classes: SloClass) -> Scenario:
    return Scenario(name, summary, classes, {name: Part(1.0, _FIVE[name])})


def _polyserve() -> Scenario:
    classes, parts = [], {}
    for tpot_ms, share in ((20, 0.1), (30, 0.2), (50, 0.3), (100, 0.4)):
        for ttft_ms in (300, 500, 1000):
            slo = SloClass(f"ttft{ttft_ms}-tpot{tpot_ms}", tpot_ms=tpot_ms, ttft_ms=ttft_ms)
            classes.append(slo)
            parts[slo.name] = Part(share / 3, _single(slo.name))
    summary = "TTFT uniform in 300, 500, 1000 ms; TPOT 20, 30, 50, 100 ms at 10, 20, 30, 40 %"
    return Scenario("polyserve", summary, tuple(classes), parts, doubles_tpot=False)


def _qoserve() -> Scenario:
    # The two batch tiers promise the last token within 600 s and 1800 s. Here: the first token 100 s earlier and
    # 100 ms a token, which keeps that promise for outputs of up to 1,000 tokens.
    classes = (
        SloClass("interactive", tpot_ms=50, ttft_ms=6_000),
        SloClass("batch-600s", tpot_ms=100, ttft_ms=500_000),
        SloClass("batch-1800s", tpot_ms=100, ttft_ms=1_700_000),
    )
    parts = {slo.name: Part(1 / 3, _single(slo.name)) for slo in classes}
    summary = "a third each: TTFT 6 s and TPOT 50 ms; last token within 600 s; within 1800 s"
    return Scenario("qoserve", summary, classes, parts, doubles_tpot=False)


_ALL = (
    _only("chatbot", "TTFT 5x zero load, TPOT 100 ms", _CHAT),
    _only("coder", "TTFT 5x zero load, TPOT 50 ms", _CODE),
    _only("summarizer", "TTFT 3x zero load, TPOT 100 ms", _SUMMARY),
    Scenario(
        "mixed",
        "chatbot, coder, summarizer, toolllm and reasoning in equal shares",
        (_CHAT, _CODE, _SUMMARY, *_TOOL, *_REASON),
        {name: Part(0.2, stages) for name, stages in _FIVE.items()},
    ),
    _only("toolllm", "tool rounds: TTFT 3x each, TPOT 50 ms in the loop, 100 ms in the last round", *_TOOL),
    _only("reasoning", "TTFT 3x, TPOT 50 ms while thinking, 100 ms in the response", *_REASON),
    _polyserve(),
    _qoserve(),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


def scenario_named(name: str) -> Scenario:
    """The scenario of that name.

    Raises
    ------
    InvalidInputError
        No such scenario; the message suggests the nearest name.
    """
    if name not in SCENARIOS:
        hint = did_you_mean(name, SCENARIOS)
        raise InvalidInputError(f"unknown scenario {name!r}. {hint}Scenarios: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def is_large_model(engine: EngineModel) -> bool:
    """Whether the engine's name says 30 B parameters or more, as in ``llama-70b-tp4-h100``."""
    found = _BILLIONS.search(engine.name.lower())
    return found is not None and float(found[1]) >= LARGE_MODEL_BILLIONS


def apply_scenario(
    rows: RawTrace, scenario: str | Scenario, engine: str | EngineModel | None = None, seed: int = 0
) -> Trace:
    """Give SLO classes and stages to raw rows.

    Parameters
    ----------
    rows : RawTrace
        Sorted by arrival, ids unique.
    scenario : str or Scenario
        Name, or a scenario of one's own.
    engine : str, EngineModel or None
        Requests whose context exceeds its `max_model_len` are dropped first and counted in the provenance; a large
        model doubles the TPOTs where the scenario says so. Without an engine neither happens.
    seed : int
        For whatever is drawn: parts of unlabelled rows, thinking shares, tool rounds.

    Returns
    -------
    Trace
        With the scenario's classes, and the engine as given.

    Raises
    ------
    InvalidInputError
        Unknown scenario or engine, a negative seed, or no request is left.
    TraceFormatError
        A row names a part that the scenario does not have.
    """
    chosen = scenario_named(scenario) if isinstance(scenario, str) else scenario
    engine = portable(engine)
    model = engine_named(engine) if isinstance(engine, str) else engine
    rng = np.random.default_rng(checked_seed(seed))
    names = list(chosen.parts)
    shares = np.array([part.share for part in chosen.parts.values()])
    drawn = rng.choice(len(names), len(rows.rows), p=shares / shares.sum()).tolist()
    requests: list[Request] = []
    dropped = 0
    for row, index in zip(rows.rows, drawn, strict=True):
        label = names[index] if row.slo is None else row.slo
        if label not in chosen.parts:
            raise TraceFormatError(
                rows.path,
                f"line {row.line}",
                f"slo {label!r} is no part of scenario {chosen.name!r}; expected one of {', '.join(names)}",
                f"{did_you_mean(label, names)}Correct the column or choose another --scenario.",
            )
        request = Request(row.id, row.arrival_s, chosen.parts[label].stages(row, rng), row.prefix)
        if model is not None and context_tokens(request) > model.max_model_len:
            dropped += 1
        else:
            requests.append(request)
    facts: dict[str, Scalar] = {**rows.provenance, "scenario": chosen.name, "seed": seed}
    if model is not None:
        facts["dropped_over_context"] = dropped
        facts["max_model_len"] = model.max_model_len
        if not requests:
            raise InvalidInputError(
                f"{rows.path}: all {dropped} requests exceed the context of {model.name} "
                f"({model.max_model_len} tokens); choose an engine with a longer one"
            )
    factor = 2 if model is not None and chosen.doubles_tpot and is_large_model(model) else 1
    classes = {slo.name: replace(slo, tpot_ms=slo.tpot_ms * factor) for slo in chosen.classes}
    return Trace(rows.name, tuple(requests), classes, engine, ScoreRule.DSLO, facts)


def checked_seed(seed: int) -> int:
    """The seed, if it is one.

    Raises
    ------
    InvalidInputError
        It is negative.
    """
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}; expected an integer >= 0")
    return seed
