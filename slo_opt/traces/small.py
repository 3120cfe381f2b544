"""Small random instances, for setting exact optima, bounds and heuristics against each other."""

import random
from dataclasses import replace

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import engine_named
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass

_ENGINES = ("opt-6.7b-a100", "llama-3-8b-a100", "llama-3-8b-h100", "llama-70b-tp4-h100")


def small_instance(
    rng: random.Random, *, max_requests: int = 6, score_rule: ScoreRule = ScoreRule.DSLO, multi_stage: bool = True
) -> Instance:
    """A few requests of a few hundred tokens that arrive faster than the engine can serve them.

    Covers what instances can hold: tight and loose TTFT and TPOT, absolute and slowdown limits, values, best effort,
    scarce KV blocks, small batch limits, cached tokens, thinking phases and tool rounds.

    Parameters
    ----------
    rng : random.Random
        Source of all choices.
    max_requests : int
        At most so many requests, at least two.
    score_rule : ScoreRule
        Rule of the instance.
    multi_stage : bool
        Whether some requests have more than one stage.
    """
    engine = _engine(rng)
    classes = {slo.name: slo for slo in _slo_classes(rng, engine)}
    names = ["tight", "loose"] if rng.random() < 0.8 else ["tight", "loose", "spare"]
    mean_gap_s = rng.choice([0.05, 0.2, 0.6, 2.0]) * engine.zero_load_ttft_s(200)
    arrival_s = 0.0
    requests: list[Request] = []
    for i in range(rng.randint(2, max_requests)):
        kind = rng.choice(["plain", "plain", "thinking", "tool"]) if multi_stage else "plain"
        stages = [_prompt(rng, rng.choice(names))]
        if kind == "thinking":
            stages.append(Stage(0, rng.randint(1, 3), rng.choice(names)))
        if kind == "tool":
            pause_s = round(rng.uniform(0.0, 2.0) * mean_gap_s, 4)
            stages.append(replace(_prompt(rng, rng.choice(names)), pause_s=pause_s))
        requests.append(Request(f"r{i}", round(arrival_s, 6), tuple(stages)))
        arrival_s += rng.expovariate(1 / mean_gap_s) if rng.random() < 0.8 else 0.0
    return Instance("small", tuple(requests), classes, engine, score_rule)


def _engine(rng: random.Random) -> EngineModel:
    engine = engine_named(rng.choice(_ENGINES))
    if rng.random() < 0.3:
        engine = replace(engine, kv_blocks=rng.randint(30, 80))
    if rng.random() < 0.2:
        engine = replace(engine, max_num_batched_tokens=rng.choice([128, 256, 512]))
    if rng.random() < 0.1:
        engine = replace(engine, max_num_seqs=rng.randint(1, 3))
    return engine


def _slo_classes(rng: random.Random, engine: EngineModel) -> list[SloClass]:
    step_ms = 1e3 * engine.batch_time_s(1, num_requests=1)
    worth = rng.choice([(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.5, 1.5)])
    classes = []
    for name, tpot, ttft, weight in (
        ("tight", (1.1, 2.5), (1.0, 2.0), worth[0]),
        ("loose", (2.0, 5.0), (1.5, 4.0), worth[1]),
        ("spare", (9.0, 9.0), (9.0, 9.0), 1.0),
    ):
        slowdown = round(rng.uniform(*ttft), 2)
        absolute_ms = round(slowdown * 1e3 * engine.zero_load_ttft_s(250), 1)
        given = {"ttft_slowdown": slowdown} if rng.random() < 0.6 else {"ttft_ms": absolute_ms}
        tpot_ms = round(step_ms * rng.uniform(*tpot), 2)
        classes.append(SloClass(name, tpot_ms, weight=weight, best_effort=name == "spare", **given))
    return classes


def _prompt(rng: random.Random, slo: str) -> Stage:
    cached = rng.choice([0, 0, 0, rng.randint(1, 100)])
    return Stage(rng.randint(20, 400), rng.randint(1, 4), slo, cached_tokens=cached)
