"""Token times score alike whether a schedule made them or a clock measured them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_schedules import RandomScheduler
from watched import RandomPolicy, drawn_instance, named

from slo_opt.analysis.timeline import unroll
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.domain.slo import ScoreRule
from slo_opt.domain.token_clock import score_tokens
from slo_opt.replay.call import Outcome
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.result import ReplayRun, ServedRequest, ServedRound
from slo_opt.replay.rounds import rounds_of
from slo_opt.replay.server import Server
from slo_opt.simulate.metrics import run_metrics
from slo_opt.simulate.simulator import SimulationOptions, simulate

SEEDS = st.integers(0, 10**9)


def scheduled(rng: random.Random) -> tuple[Instance, Schedule, list[list[float]]]:
    """A random schedule on a random instance, and when each token of each request came."""
    instance = drawn_instance(rng)
    scheduler = RandomScheduler(instance, rng, speculate=rng.random() < 0.3, preempt=True)
    schedule = Schedule.from_batches(scheduler.run(rng.choice([10, 30, 80])))
    timeline = unroll(instance, schedule)
    tokens_s: list[list[float]] = [[] for _ in instance.requests]
    for index, at_s in zip(timeline.token_request.tolist(), timeline.token_s.tolist(), strict=True):
        tokens_s[index].append(at_s)
    return instance, schedule, tokens_s


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_measured_times_score_as_the_schedule_that_made_them(seed: int):
    instance, schedule, tokens_s = scheduled(random.Random(seed))
    evaluation, scores = evaluate(instance, schedule), score_tokens(instance, tokens_s)
    assert evaluation.legal
    assert scores.attained.tolist() == evaluation.attained.tolist()
    assert scores.finished.tolist() == evaluation.finished.tolist()
    assert scores.counted.tolist() == evaluation.counted.tolist()
    assert (scores.value, scores.num_attained) == (evaluation.value, evaluation.num_attained)
    for mine, other in zip(scores.stages, evaluation.stages, strict=True):
        for got, expected in zip(mine, other, strict=False):
            assert got.release_s == pytest.approx(expected.release_s)
            assert got.lateness_s == pytest.approx(expected.lateness_s, abs=1e-9)


def test_the_random_schedules_reach_every_rule_and_both_outcomes():
    seen = set()
    for seed in range(120):
        instance, _, tokens_s = scheduled(random.Random(seed))
        scores = score_tokens(instance, tokens_s)
        seen |= {(instance.score_rule, bool(attained)) for attained in scores.attained[scores.counted]}
    assert seen == {(rule, attained) for rule in ScoreRule for attained in (True, False)}


def test_who_failed_is_not_attained_whatever_came():
    instance, _, tokens_s = next(
        case for seed in range(50) if score_tokens((case := scheduled(random.Random(seed)))[0], case[2]).num_attained
    )
    before = score_tokens(instance, tokens_s)
    lost = int(before.attained.argmax())
    after = score_tokens(instance, tokens_s, failed=[lost])
    assert not after.attained[lost]
    assert not after.finished[lost]
    assert after.num_attained == before.num_attained - 1
    assert after.value == pytest.approx(before.value - instance.value_of(instance.requests[lost]))


def test_too_many_times_are_refused():
    instance = drawn_instance(random.Random(1))
    times = [[0.0] * (request.output_tokens + 1) for request in instance.requests]
    with pytest.raises(InvalidInputError, match="token times for"):
        score_tokens(instance, times)


def as_if_measured(instance: Instance, tokens_s: list[list[float]]) -> ReplayRun:
    """A replay in which a server put out the tokens at these times."""
    requests = []
    for request, times_s in zip(instance.requests, tokens_s, strict=True):
        left, rounds, due_s = list(times_s), [], request.arrival_s
        for each in rounds_of(request):
            got, left = left[: each.output_tokens], left[each.output_tokens :]
            due_s += each.pause_s
            rounds.append(ServedRound(due_s, due_s, tuple(got), each.context_tokens, None, False))
            if len(got) < each.output_tokens:
                break
            due_s = got[-1]
        outcome = Outcome.FINISHED if len(times_s) == request.output_tokens else Outcome.CUT
        requests.append(ServedRequest(outcome, "", tuple(rounds)))
    return ReplayRun(instance, Server("http://x", "m"), ReplayOptions(), tuple(requests), False, 0, 0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_figures_of_a_simulated_run_and_of_its_measured_tokens_are_the_same(seed: int):
    rng = random.Random(seed)
    instance = drawn_instance(rng)
    policy = rng.choice([RandomPolicy(rng), named("vllm-fcfs", instance)])
    run = simulate(instance, policy, SimulationOptions(seed, noise=0.2))
    timeline = unroll(instance, run.schedule)
    tokens_s: list[list[float]] = [[] for _ in instance.requests]
    for index, at_s in zip(timeline.token_request.tolist(), timeline.token_s.tolist(), strict=True):
        tokens_s[index].append(at_s)
    simulated, measured = run_metrics(run), as_if_measured(instance, tokens_s).metrics()
    for mine, other in zip((measured.total, *measured.classes), (simulated.total, *simulated.classes), strict=True):
        for field in ("name", "requests", "finished", "offered", "attained", "value", "offered_value", "attainment"):
            assert getattr(mine, field) == getattr(other, field)
        for field in ("ttft_ms", "tpot_ms", "itl_ms"):
            got, expected = getattr(mine, field), getattr(other, field)
            assert got.count == expected.count
            for share in ("p50", "p90", "p99"):
                assert getattr(got, share) == pytest.approx(getattr(expected, share), abs=1e-6)
        # A last batch without a token is no end that a client sees.
        if run.end_s == max((times_s[-1] for times_s in tokens_s if times_s), default=0.0):
            assert mine.output_tokens_per_s == pytest.approx(other.output_tokens_per_s)
    assert measured.offered_rps == simulated.offered_rps
    assert measured.num_unfinished == simulated.num_unfinished + simulated.num_rejected
