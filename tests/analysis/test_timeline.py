"""The unrolled schedule agrees with the checker, which shares no code with it."""

import numpy as np
import pytest

from slo_opt import Batch, Instance, Request, Schedule, SloClass, Stage, engine_named, evaluate
from slo_opt.analysis.timeline import restricted, unroll


def assert_agrees(instance: Instance, schedule: Schedule) -> None:
    evaluation, timeline = evaluate(instance, schedule), unroll(instance, schedule)
    assert evaluation.legal, evaluation.violations[:3]
    assert float((timeline.end_s - timeline.start_s).sum()) == pytest.approx(evaluation.busy_s, rel=1e-12)
    assert int(timeline.kv_blocks.max()) == evaluation.peak_kv_blocks
    assert int(timeline.entry_tokens.sum()) == evaluation.num_tokens
    for index, stages in enumerate(evaluation.stages):
        for number, times in enumerate(stages):
            mine = (timeline.token_request == index) & (timeline.token_stage == number)
            if np.isnan(times.first_token_s):
                assert not mine.any()
                continue
            assert timeline.token_s[mine].min() == pytest.approx(times.first_token_s, abs=1e-9)
            assert timeline.token_s[mine].max() == pytest.approx(times.last_token_s, abs=1e-9)
            assert timeline.token_number[mine].tolist() == list(range(1, int(mine.sum()) + 1))


def test_agrees_with_the_checker_on_a_real_plan(burst: Instance, burst_plan: Schedule):
    assert_agrees(burst, burst_plan)


def test_stages_rounds_preemption_and_speculation():
    engine = engine_named("llama-3-8b-a100")
    classes = {"x": SloClass("x", tpot_ms=500, ttft_ms=5000)}
    requests = (
        Request("think", 0.0, (Stage(40, 2, "x"), Stage(0, 3, "x"))),
        Request("tool", 0.0, (Stage(30, 2, "x"), Stage(20, 2, "x", cached_tokens=32, pause_s=0.5))),
    )
    instance = Instance("hand", requests, classes, engine)
    schedule = Schedule.from_batches(
        [
            Batch(0.0, (0, 1), (40, 30)),
            Batch(0.5, (0, 1), (1, 1)),  # thinking and the first round end
            Batch(1.0, (0,), (4,), emitted=(2,)),  # two of the response, speculated
            Batch(2.0, (0, 1), (44, 20), preempted=(0,), emitted=(1, 1)),  # recompute; second round
            Batch(3.0, (1,), (1,)),
        ]
    )
    assert_agrees(instance, schedule)


def test_restricted_keeps_only_what_is_asked(burst: Instance, burst_plan: Schedule):
    keep = evaluate(burst, burst_plan).attained
    kept = restricted(burst_plan, keep)
    evaluation = evaluate(burst, kept)
    assert evaluation.legal
    assert np.array_equal(evaluation.attained, keep)  # fewer tokens in a batch are never slower
    assert set(kept.request.tolist()) == set(np.flatnonzero(keep).tolist())


def test_restricted_moves_a_preemption_to_the_next_batch_left():
    schedule = Schedule.from_batches(
        [Batch(0.0, (0,), (5,)), Batch(1.0, (1,), (5,), preempted=(0,)), Batch(2.0, (0,), (5,))]
    )
    kept = restricted(schedule, np.array([True, False]))
    assert kept.start_s.tolist() == [0.0, 2.0]
    assert kept.preempted == {1: (0,)}
