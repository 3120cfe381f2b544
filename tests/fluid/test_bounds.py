"""Bounds against schedules, against each other, and against the optimum of the program that they bound."""

import math
import random
import signal
from dataclasses import replace

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_schedules import RandomScheduler

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.domain.slo import ScoreRule
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid, make_grid
from slo_opt.formulations.fluid_highs import FluidModel, build_fluid
from slo_opt.formulations.sparse_model import FloatArray, row_multipliers
from slo_opt.solvers.fluid import FluidHighsSolver, _block_bounds, _merge_pairs, _Run
from slo_opt.solvers.fluid_blocks import Block, Decomposition, active_slots, cut_blocks
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.small import small_instance

SEEDS = st.integers(0, 10**9)
RULES = list(ScoreRule)


def loaded(rng: random.Random, most: int = 12) -> Instance:
    """A small instance of any kind that has work to bound."""
    while True:
        instance = small_instance(rng, max_requests=most, score_rule=rng.choice(RULES))
        if attainable_work(instance)[0]:
            return replace(instance, num_replicas=rng.choice([1, 1, 2]))


def relaxed(instance: Instance, rng: random.Random, pooled: bool) -> tuple[FluidGrid, FluidModel]:
    resolution_s = rng.choice([5e-3, 0.02])
    grid = make_grid(
        *attainable_work(instance), resolution_s=resolution_s, coarse_s=resolution_s * rng.choice([1, 3]), pooled=pooled
    )
    return grid, build_fluid(instance, grid)


def optimum(model: FluidModel, *, integer: bool = False) -> tuple[float, FloatArray]:
    """Optimal value and row multipliers."""
    columns = np.array(sorted(model.accept.values())) if integer else None
    highs = model.arrays.to_highs(columns)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return -highs.getObjectiveValue(), row_multipliers(highs)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans(), st.sampled_from([0.0, 1e-6, 1e-2, 1.0]))
def test_any_multipliers_give_a_bound(seed, pooled, noise):
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    _, model = relaxed(loaded(rng), rng, pooled)
    value, multipliers = optimum(model)
    spoiled = multipliers + noise * draws.standard_normal(len(multipliers)) * (1 + np.abs(multipliers))
    bound = model.arrays.safe_bound(spoiled)
    assert bound >= value - 1e-7 * max(1, value)
    if noise == 0:
        assert bound <= value + 1e-5 * max(1, value)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_no_schedule_beats_the_bounds(seed):
    rng = random.Random(seed)
    instance = loaded(rng, most=6)
    solvers = [schedule_solver("highs"), schedule_solver("cvxpy"), FluidHighsSolver(coarser=rng.choice([1.5, 4.0]))]
    bounds = [solver.solve(instance, SolverConfig()).bounds.dual for solver in solvers]
    schedules = [schedule_solver("dp").solve(instance, SolverConfig(seed=seed % 1000)).schedule]
    for preempt in (False, True):
        scheduler = RandomScheduler(instance, rng, speculate=False, preempt=preempt)
        schedules.append(Schedule.from_batches(scheduler.run()))
    for schedule in schedules:
        if schedule is not None:
            outcome = evaluate(instance, schedule)
            assert outcome.legal
            assert outcome.value <= min(bounds) + 1e-6 * max(1, min(bounds))


def test_slots_are_never_shorter_than_those_that_pay():
    with pytest.raises(InvalidInputError, match="at least 1"):
        FluidHighsSolver(coarser=0.5)


def random_partition(instance: Instance, grid: FluidGrid, rng: random.Random) -> list[Block]:
    """Any partition at all, not only runs of consecutive requests."""
    spans = active_slots(instance, grid)
    groups: dict[int, list[int]] = {}
    for request in spans:
        groups.setdefault(rng.randrange(4), []).append(request)
    return [
        Block(
            tuple(sorted(requests)),
            int(grid.coarse_of_fine[min(spans[i][0] for i in requests)]),
            int(grid.coarse_of_fine[max(spans[i][1] for i in requests) - 1]) + 1,
        )
        for requests in groups.values()
    ]


def block_optima(parts: Decomposition, *, integer: bool) -> list[float]:
    found = []
    for b in range(len(parts.blocks)):
        local, cost = parts.problem(b)
        local.arrays.cost = cost
        found.append(optimum(local, integer=integer)[0])
    return found


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_priced_blocks(seed, pooled):
    """Blocks lose nothing against the relaxation; their integer programs lie between it and the integer optimum.

    Pooled leads are pooled block by block, which is tighter than all together; leads apart are tighter still.
    """
    rng = random.Random(seed)
    instance = loaded(rng)
    grid, model = relaxed(instance, rng, pooled)
    value, multipliers = optimum(model)
    apart = build_fluid(instance, replace(grid, pooled=False)) if pooled else model
    whole, _ = optimum(apart, integer=True)
    partitions = [
        cut_blocks(instance, grid, model, multipliers, 2),
        random_partition(instance, grid, rng),
    ]
    for blocks in partitions:
        parts = Decomposition(instance, grid, model, multipliers, blocks)
        linear = math.fsum(block_optima(parts, integer=False)) + parts.constant
        assert linear <= value + 1e-5 * max(1, value)
        if not pooled:
            assert linear == pytest.approx(value, rel=1e-5, abs=1e-5)
        mixed = math.fsum(block_optima(parts, integer=True)) + parts.constant
        assert whole - 1e-5 * max(1, whole) <= mixed <= value + 1e-5 * max(1, value)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_bounds_of_blocks_outlive_the_joining_of_others(seed):
    """After a join, the old bound of a block that was left alone still fits the new constant, whatever the prices."""
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    instance = loaded(rng)
    grid, model = relaxed(instance, rng, False)
    value, multipliers = optimum(model)
    multipliers = multipliers * draws.uniform(0.5, 1.5, len(multipliers))
    parts = Decomposition(instance, grid, model, multipliers, random_partition(instance, grid, rng))
    if len(parts.blocks) < 2:
        return
    alone = block_optima(parts, integer=False)
    joined = parts.merged([(0, 1)])
    together = block_optima(joined, integer=False)
    assert math.fsum([together[0], *alone[2:]]) + joined.constant >= value - 1e-5 * max(1, value)
    for b in range(2, len(parts.blocks)):
        assert together[b - 1] == pytest.approx(alone[b], rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 3))
def test_joining_blocks_never_cuts_off_the_optimum(seed, idle):
    """Rounds of joining, from the first or the second block on, keep a bound on the integer optimum."""
    rng = random.Random(seed)
    instance = loaded(rng)
    grid, model = relaxed(instance, rng, False)
    _, multipliers = optimum(model)
    whole, _ = optimum(model, integer=True)
    run = _Run(SolverConfig())
    parts = Decomposition(instance, grid, model, multipliers, random_partition(instance, grid, rng))
    bounds = _block_bounds(parts, range(len(parts.blocks)), run, 1.0, relax=True)
    for offset in (idle, 1, 0, 0):
        before = math.fsum(bounds) + parts.constant
        parts, bounds = _merge_pairs(parts, bounds, run, offset % 2)
        after = math.fsum(bounds) + parts.constant
        assert len(bounds) == len(parts.blocks)
        assert whole - 1e-5 * max(1, whole) <= after <= before + 1e-5 * max(1, before)


@pytest.mark.parametrize("name", ["highs", "cvxpy"])
@pytest.mark.parametrize("limit_s", [0.0, 1e-3, 0.02, 0.1])
def test_time_limits_leave_a_valid_bound_or_none(name, limit_s):
    for seed in range(3):
        rng = random.Random(seed)
        instance = loaded(rng)
        proved = schedule_solver("highs").solve(instance, SolverConfig()).bounds.dual
        result = schedule_solver(name).solve(instance, SolverConfig(time_limit_s=limit_s))
        assert result.schedule is None
        assert result.bounds.dual is None or result.bounds.dual >= proved - 1e-6
        if result.bounds.dual is None:
            assert result.termination is Termination.TIME_LIMIT


def test_nothing_attainable_is_worth_nothing():
    instance = loaded(random.Random(1))
    hopeless = replace(
        instance,
        slo_classes={n: replace(slo, ttft_ms=1e-3, ttft_slowdown=None) for n, slo in instance.slo_classes.items()},
    )
    for name in ("highs", "cvxpy"):
        result = schedule_solver(name).solve(hopeless, SolverConfig())
        assert (result.bounds.dual, result.termination) == (0.0, Termination.OPTIMAL)


def test_interrupt_leaves_a_valid_bound_or_none():
    instance = loaded(random.Random(3))
    proved = schedule_solver("highs").solve(instance, SolverConfig()).bounds.dual
    for name in ("highs", "cvxpy"):
        fired = []

        def interrupt(phrase: str, done: float | None, fired: list[bool] = fired) -> None:
            if not fired:
                fired.append(True)
                signal.raise_signal(signal.SIGINT)

        result = schedule_solver(name).solve(instance, SolverConfig(progress=interrupt))
        assert fired
        assert result.termination is Termination.INTERRUPTED
        assert result.bounds.dual is None or result.bounds.dual >= proved - 1e-6
