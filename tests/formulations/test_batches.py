"""Level 1: exact on batches, against exhaustive search and against itself."""

import random
from dataclasses import replace

import pytest
from batches_brute_force import best_value, tiny_instance

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.formulations.batches_cpsat import Grid, sufficient_slots
from slo_opt.formulations.batches_rounds import rounds_of
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.small import small_instance

RULES = list(ScoreRule)
CONFIG = SolverConfig(time_limit_s=300.0)  # a few seconds on a machine that does nothing else


def solved(instance, config=CONFIG):
    """The result, its schedule replayed."""
    result = schedule_solver("cpsat").solve(instance, config)
    assert result.schedule is not None
    outcome = evaluate(instance, result.schedule)
    assert outcome.legal
    assert outcome.value == result.bounds.primal
    assert set(result.schedule.admitted) == {i for i, yes in enumerate(outcome.attained) if yes}
    return result


@pytest.mark.parametrize("start", range(230, 300, 5))
def test_equals_exhaustive_search(start):
    for seed in range(start, start + 5):
        instance = tiny_instance(random.Random(seed), RULES[seed % 3])
        result = solved(instance)
        assert result.termination is Termination.OPTIMAL
        assert result.bounds.primal == result.bounds.dual == best_value(instance), seed


def test_the_tiny_instances_are_not_trivial():
    lost = partly = 0
    for seed in range(230, 300):
        instance = tiny_instance(random.Random(seed), RULES[seed % 3])
        offered = sum(instance.value_of(request) for request in instance.requests)
        value = solved(instance).bounds.primal
        lost += value == 0
        partly += 0 < value < offered
    assert lost < 40
    assert partly > 15


@pytest.mark.parametrize("rule", RULES)
def test_more_slots_than_sufficient_change_nothing(rule, monkeypatch):
    import slo_opt.formulations.batches_cpsat as formulation

    for seed in range(1, 5):
        instance = small_instance(random.Random(seed), max_requests=3, score_rule=rule)
        value = solved(instance).bounds
        with monkeypatch.context() as patch:
            patch.setattr(formulation, "sufficient_slots", lambda i, r: sufficient_slots(i, r) + 4)
            assert solved(instance).bounds == value


@pytest.mark.parametrize("rule", RULES)
def test_certified_on_small_instances(rule):
    for seed in range(6):
        result = solved(small_instance(random.Random(1000 + seed), max_requests=5, score_rule=rule))
        assert result.termination is Termination.OPTIMAL
        assert result.bounds.gap() == 0


def chat(engine, *lengths, gap_s=0.0, rule=ScoreRule.DSLO, **slo):
    """Requests of one class, `gap_s` apart."""
    classes = {"chat": SloClass("chat", **{"tpot_ms": 100.0, "ttft_slowdown": 1.0, **slo})}
    requests = tuple(
        Request(f"r{i}", i * gap_s, (Stage(prompt, output, "chat"),)) for i, (prompt, output) in enumerate(lengths)
    )
    return Instance("chat", requests, classes, engine_named(engine), rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("engine", ["opt-6.7b-a100", "llama-3-8b-h100"])
def test_a_knife_edge_is_no_obstacle(engine, rule):
    """A TTFT limit of exactly the zero-load time: only the exact start at the arrival attains it."""
    alone = chat(engine, (333, 3), gap_s=0.0, rule=rule)
    moved = alone.with_requests((replace(alone.requests[0], arrival_s=1.23456789),))
    assert solved(moved).bounds.primal == 1
    late = replace(moved, slo_classes={"chat": SloClass("chat", tpot_ms=100.0, ttft_ms=1.0)})
    assert solved(late).bounds.dual == 0


def test_waits_for_a_request_worth_more():
    """Idle time pays: a batch started now would make the dearer request late."""
    engine = engine_named("opt-6.7b-a100")
    t0 = engine.zero_load_ttft_s(300)
    classes = {
        "cheap": SloClass("cheap", tpot_ms=100.0, ttft_ms=1e3 * 1.2 * t0),
        "dear": SloClass("dear", tpot_ms=100.0, ttft_slowdown=1.0, weight=5.0),
    }
    requests = (
        Request("a", 0.0, (Stage(300, 1, "cheap"),)),
        Request("b", 0.5 * t0, (Stage(300, 1, "dear"),)),
    )
    assert (
        solved(Instance("wait", requests, classes, engine)).bounds
        == solved(Instance("alone", requests[1:], classes, engine)).bounds
    )
    assert solved(Instance("wait", requests, classes, engine)).bounds.primal == 5.0


@pytest.mark.parametrize(
    ("seed", "rule", "optimum"),
    [(20_004, ScoreRule.DSLO, 4.0), (125, ScoreRule.FIRST_LATE_SHIFTS, 3.0), (313, ScoreRule.MEAN_TPOT, 4.0)],
)
def test_presolve_does_not_cut_off_the_optimum(seed, rule, optimum):
    """CP-SAT 9.15 calls one less optimal here, with its default presolve or without dual reductions."""
    result = solved(small_instance(random.Random(seed), score_rule=rule))
    assert result.bounds.primal == result.bounds.dual == optimum


def test_best_effort_is_left_out():
    instance = chat("opt-6.7b-a100", (100, 2), (100, 2), best_effort=True)
    result = solved(instance)
    assert (result.bounds.primal, result.bounds.dual, len(result.schedule)) == (0.0, 0.0, 0)


def test_a_dozen_requests():
    instance = chat("opt-6.7b-a100", *[(100 + 30 * i, 1 + i % 3) for i in range(12)], gap_s=0.01, ttft_slowdown=2.5)
    result = solved(instance)
    assert result.termination is Termination.OPTIMAL
    assert 0 < result.bounds.primal == result.bounds.dual < 12


def test_time_limit_leaves_a_valid_bound():
    instance = chat("llama-3-8b-h100", *[(200 + i, 4) for i in range(10)], gap_s=0.01, ttft_slowdown=2.0)
    result = solved(instance, SolverConfig(time_limit_s=0.05))
    assert result.termination is Termination.TIME_LIMIT
    assert result.bounds.primal <= result.bounds.dual <= 10


def test_what_it_does_not_take():
    instance = chat("opt-6.7b-a100", (100, 2))
    with pytest.raises(InvalidInputError, match="one replica, not 2"):
        schedule_solver("cpsat").solve(replace(instance, num_replicas=2), CONFIG)
    crowd = chat("opt-6.7b-a100", *[(100, 50)] * 40, gap_s=0.1)
    with pytest.raises(InvalidInputError, match="it is for a dozen requests; take a smaller window"):
        schedule_solver("cpsat").solve(crowd, CONFIG)
    days = chat("opt-6.7b-a100", (100, 2), (100, 2), gap_s=2 * 86_400.0)
    with pytest.raises(InvalidInputError, match="a day at most"):
        schedule_solver("cpsat").solve(days, CONFIG)


def test_sufficient_slots():
    instance = chat("opt-6.7b-a100", (100, 2), (100, 3), gap_s=0.05, ttft_slowdown=50.0)
    assert sufficient_slots(instance, rounds_of(instance)) == 2 + 3 + 1  # by merging
    hasty = chat("opt-6.7b-a100", (100, 9), (100, 9), tpot_ms=26.0)
    span_s = hasty.ttft_limit_s(hasty.requests[0].stages[0]) + 8 * 0.026
    assert sufficient_slots(hasty, rounds_of(hasty)) == int(span_s / hasty.engine.batch_time_s(1, num_requests=1))


def test_grids_enclose_the_real_times():
    outer, inner = Grid(True, 1.0), Grid(False, 1.0)
    assert (outer.release(2.0000001), inner.release(2.0000001)) == (1_000_000, 1_000_001)
    assert (outer.deadline(2.0000009), inner.deadline(2.0000009)) == (1_000_001, 1_000_000)
    assert (outer.min_lag(0.5000001), inner.min_lag(0.5000001)) == (500_000, 500_001)
    assert (outer.max_lag(0.4999999), inner.max_lag(0.4999999)) == (500_001, 499_999)
    assert outer.cost_ps(1.5e-12) == 1
    assert inner.cost_ps(1.5e-12) == 2
