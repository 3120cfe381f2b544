"""Stage windows are outer: whatever attains a request lies inside them."""

import random
from dataclasses import replace

import pytest
from evaluate_cases import batch, plain_instance, replayed, request
from hypothesis import given, settings
from hypothesis import strategies as st
from random_schedules import RandomScheduler, attained

from slo_opt.domain.request import Stage
from slo_opt.domain.slo import ScoreRule
from slo_opt.domain.windows import stage_windows
from slo_opt.traces.small import small_instance

DSLO, MEAN, SHIFTS = ScoreRule.DSLO, ScoreRule.MEAN_TPOT, ScoreRule.FIRST_LATE_SHIFTS


def attained_jobs(seed):
    """Instance, and the jobs that a random scheduler attained; prompts may exceed the token limit of a batch."""
    rng = random.Random(seed)
    instance = small_instance(rng, score_rule=rng.choice(list(ScoreRule)))
    if rng.random() < 0.5:
        instance = replace(instance, engine=replace(instance.engine, max_num_batched_tokens=rng.randint(30, 200)))
    factor = rng.choice([1.0, 2.0, 4.0])
    classes = {
        name: replace(slo, tpot_ms=slo.tpot_ms * factor, ttft_ms=300.0 * factor, ttft_slowdown=None)
        for name, slo in instance.slo_classes.items()
    }
    instance = replace(instance, slo_classes=classes)
    scheduler = RandomScheduler(instance, rng, speculate=False, preempt=rng.random() < 0.5)
    scheduler.run()
    return instance, [job for job in scheduler.jobs if attained(instance, job)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9))
def test_attained_requests_lie_inside(seed):
    instance, jobs = attained_jobs(seed)
    for job in jobs:
        windows = stage_windows(instance, job.request)
        assert len(windows) == len(job.request.stages)
        assert instance.unservable_reason(job.request) is None
        for s, (window, times, released_s) in enumerate(zip(windows, job.tokens_s, job.released_s, strict=True)):
            slack = 1e-6 * (s + 1)
            assert window.release_s <= released_s + slack
            for n, time_s in enumerate(times, start=1):
                assert time_s <= window.due_s(n) + slack
            assert times[-1] <= window.last_due_s + slack
            assert times[0] <= window.first_due_s + slack


def test_the_property_sees_many_attained_requests():
    jobs = [job for seed in range(80) for job in attained_jobs(seed)[1]]
    assert len(jobs) > 80
    assert sum(len(job.request.stages) > 1 for job in jobs) > 20


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # (release, first due, last due); a batch takes 10 s and 1 s a token, TTFT 100 and 50 s, TPOT 20 and 12 s.
        (DSLO, [(3, 103, 123), (3 + 15 + 11, 135, 147), (29 + 22 + 30, 227, 239)]),
        (MEAN, [(3, 103, 123), (29, 147, 147), (81, 227, 239)]),
        (SHIFTS, [(3, 108, 129), (29, 141.6, 154.2), (81, 236.7, 249.3)]),
    ],
)
def test_chain(rule, expected):
    stages = Stage(5, 2, "main"), Stage(0, 2, "quick"), Stage(4, 2, "quick", pause_s=30.0)
    instance = plain_instance(request("a", 3.0, *stages), rule=rule)
    windows = stage_windows(instance, instance.requests[0])
    found = [value for w in windows for value in (w.release_s, w.first_due_s, w.last_due_s)]
    assert found == pytest.approx([value for row in expected for value in row])
    assert all(window.each_token == (rule is not MEAN) for window in windows)


def test_due_of_each_token():
    asked = request("a", 0.0, Stage(5, 4, "main"))
    window = stage_windows(plain_instance(asked), asked)[0]
    assert [window.due_s(n) for n in (1, 2, 3, 4)] == [100, 120, 140, 160]
    loose = stage_windows(plain_instance(asked, rule=MEAN), asked)[0]
    assert [loose.due_s(n) for n in (1, 2, 3, 4)] == [100, 160, 160, 160]


def test_even_chunks_beat_full_ones():
    """A release that assumed full batches and a rest would cut off schedules with even chunks."""
    pieces = type(plain_instance(request("a", 0.0, Stage(1, 1, "main"))).engine.pieces[0])
    asked = request("a", 0.0, Stage(11, 1, "main"), Stage(5, 1, "main"))
    instance = plain_instance(asked, pieces=(pieces(1.0, 10.0), pieces(3.0, 0.0)), max_num_batched_tokens=10)
    assert instance.engine.zero_load_ttft_s(11) == 30 + 11
    assert instance.engine.least_prefill_s(11) == 33  # 6 + 5 tokens: 18 + 15 s
    assert stage_windows(instance, asked)[1].release_s == 33


def test_release_of_a_round_is_reached_by_the_fastest_schedule():
    """One request alone: the earliest release is exact, context included."""
    stages = Stage(5, 2, "main"), Stage(0, 1, "quick"), Stage(4, 1, "quick")
    instance = plain_instance(request("a", 0.0, *stages), decode_context_s=1.0)
    fastest = batch(0, {0: 5}), batch(15, {0: 1}), batch(31, {0: 1}), batch(48, {0: 4})
    outcome = replayed(instance, *fastest)
    assert outcome.violations == ()
    assert stage_windows(instance, instance.requests[0])[2].release_s == outcome.stages[0][2].release_s == 48
