"""The compiled kernel against the evaluator, on random instances with all that instances can hold."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt import Instance, Request, ScoreRule, SloClass, Stage, engine_named, evaluate
from slo_opt.solvers.offline.assemble import merge
from slo_opt.solvers.offline.lane import Lane
from slo_opt.solvers.offline.state import SETTINGS
from slo_opt.traces.small import small_instance


def loaded_instance(seed: int, rule: ScoreRule = ScoreRule.DSLO, count: int = 40) -> Instance:
    """Forty requests of one to three stages, faster than the engine; scarce KV, seats and tokens now and then."""
    rng = random.Random(seed)
    engine = engine_named(rng.choice(["opt-6.7b-a100", "llama-3-8b-a100", "llama-3-8b-h100"]))
    engine = replace(
        engine,
        kv_blocks=rng.choice([engine.kv_blocks, 150, 400]),
        max_num_seqs=rng.choice([256, 3, 8]),
        max_num_batched_tokens=rng.choice([8192, 300]),
        block_size_tokens=rng.choice([16, 5]),
    )
    classes = {
        "tight": SloClass("tight", tpot_ms=40, ttft_slowdown=4),
        "loose": SloClass("loose", tpot_ms=100, ttft_ms=900, weight=2.0),
        "spare": SloClass("spare", tpot_ms=100, ttft_ms=900, best_effort=True),
    }
    names = ["tight", "loose", "loose", "spare"]
    requests, arrival_s = [], 0.0
    for i in range(count):
        stages = [
            Stage(rng.randint(1, 900), rng.randint(1, 30), rng.choice(names), pause_s=rng.choice([0.0, 0.0, 0.1]))
        ]
        if rng.random() < 0.3:
            stages.append(Stage(0, rng.randint(1, 20), rng.choice(names)))
        if rng.random() < 0.3:
            cached = rng.choice([0, sum(s.prompt_tokens for s in stages)])
            stages.append(
                Stage(rng.randint(1, 300), rng.randint(1, 20), rng.choice(names), cached, rng.choice([0.0, 0.5]))
            )
        requests.append(Request(f"r{i}", arrival_s, tuple(stages)))
        arrival_s += rng.expovariate(rng.choice([3.0, 12.0]))
    return Instance(f"loaded {seed}", tuple(requests), classes, engine, rule)


def agrees(instance: Instance, lane: Lane) -> float:
    """Value of the lane's best plan, after the evaluator has found the same requests attained."""
    schedule = merge([lane])
    evaluation = evaluate(instance, schedule)
    assert evaluation.violations == ()
    assert tuple(np.flatnonzero(evaluation.attained)) == schedule.admitted
    assert evaluation.value == pytest.approx(lane.best_value)
    return evaluation.value


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(list(ScoreRule)))
def test_random_plans_are_legal_and_scored_alike(seed: int, rule: ScoreRule) -> None:
    instance = loaded_instance(seed, rule)
    lane = Lane(instance, range(len(instance.requests)))
    rng = np.random.default_rng(seed)
    lane.plan.setting[:] = rng.integers(0, len(SETTINGS), len(lane.plan.setting))
    lane.plan.offset_s[:] = rng.uniform(-1, 1, len(lane.plan.offset_s))
    lane.start_from(rng.random(len(lane.members)) < rng.choice([0.3, 0.7, 1.0]))
    agrees(instance, lane)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(list(ScoreRule)))
def test_playing_only_what_a_move_changes_is_playing_it_all(seed: int, rule: ScoreRule) -> None:
    instance = loaded_instance(seed, rule)
    lane = Lane(instance, range(len(instance.requests)), seed)
    for _ in lane.insert(np.arange(len(lane.members))):
        pass
    value = agrees(instance, lane)
    lane.improve(150, 0.2)
    kept = lane.plan.accept.copy()
    lane.start_from(kept)  # from the beginning: nobody may be late
    assert (lane.plan.accept == kept).all()
    assert lane.best_value >= value
    agrees(instance, lane)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(list(ScoreRule)))
def test_small_instances(seed: int, rule: ScoreRule) -> None:
    instance = small_instance(random.Random(seed), score_rule=rule)
    lane = Lane(instance, range(len(instance.requests)), seed)
    lane.start_from(np.ones(len(lane.members), dtype=np.bool_))
    agrees(instance, lane)


def test_an_idle_engine_attains_everything() -> None:
    slo = SloClass("chat", tpot_ms=100, ttft_slowdown=5)
    requests = tuple(Request(f"r{i}", 10.0 * i, (Stage(500, 20, "chat"),)) for i in range(5))
    instance = Instance("idle", requests, {"chat": slo}, engine_named("llama-3-8b-a100"))
    lane = Lane(instance, range(5))
    lane.start_from(np.ones(5, dtype=np.bool_))
    assert agrees(instance, lane) == 5


def test_decodes_share_batches_that_last_as_long_as_their_pace_allows() -> None:
    # One batch of 50 ms holds 366 tokens on this engine; two prompts of 1,000 cannot both be decoded at 50 ms
    # unless the second is cut into chunks beside the first one's decode.
    slo = SloClass("coder", tpot_ms=50, ttft_slowdown=5)
    requests = (Request("a", 0.0, (Stage(1000, 30, "coder"),)), Request("b", 0.2, (Stage(1000, 30, "coder"),)))
    instance = Instance("two", requests, {"coder": slo}, engine_named("opt-6.7b-a100"))
    lane = Lane(instance, range(2))
    lane.start_from(np.ones(2, dtype=np.bool_))
    assert agrees(instance, lane) == 2
    schedule = merge([lane])
    chunks = [int(t) for r, t in zip(schedule.request, schedule.tokens, strict=True) if r == 1 and t > 1]
    assert sum(chunks) == 1000
