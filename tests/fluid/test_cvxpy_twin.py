"""The two statements of level 3 agree; what the prices say is true."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bounds import loaded, optimum, relaxed

from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid
from slo_opt.formulations.fluid_highs import build_fluid
from slo_opt.solvers.fluid_cvxpy import FluidCvxpySolver, practical_grid, shadow_prices
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.traces.small import small_instance

SEEDS = st.integers(0, 10**9)
CONFIG = SolverConfig()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_both_statements_have_the_same_optimum(seed, pooled):
    rng = random.Random(seed)
    instance = loaded(rng, most=14)
    grid, model = relaxed(instance, rng, pooled)
    value, _ = optimum(model)
    assert shadow_prices(instance, CONFIG, grid).bound == pytest.approx(value, rel=1e-5, abs=1e-6)


def scarce(seed: int, **engine: int):
    """A dozen requests, more than the engine can serve."""
    rng = random.Random(seed)
    instance = loaded(rng, most=12)
    return replace(instance, engine=replace(instance.engine, **engine))


def longer(grid: FluidGrid, slot: int, more_s: float) -> float:
    return float(grid.length_s[slot]) + more_s


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_engine_time_is_worth_at_most_its_price(seed):
    """More time in one slot adds at most price x time: the optimum is concave in the right side."""
    rng = random.Random(seed)
    instance = loaded(rng)
    grid, model = relaxed(instance, rng, False)
    prices = shadow_prices(instance, CONFIG, grid)
    slot, more_s = int(np.argmax(prices.engine_time)), 0.01
    assert prices.engine_time.min() >= 0
    model.arrays.row_upper = model.arrays.row_upper.copy()
    model.arrays.row_upper[model.compute[:, slot]] += more_s
    value, _ = optimum(model)
    assert value <= prices.bound + prices.engine_time[slot] * more_s + 1e-5


def test_prices_tell_scarce_from_plenty():
    tight = [shadow_prices(scarce(seed), CONFIG) for seed in range(8)]
    assert max(prices.engine_time.max() for prices in tight) > 1
    cramped = [shadow_prices(scarce(seed, kv_blocks=31), CONFIG).memory.sum() for seed in range(8)]
    roomy = [shadow_prices(scarce(seed, kv_blocks=1 << 20), CONFIG).memory.sum() for seed in range(8)]
    assert max(cramped) > 1e-3
    assert max(roomy) < 1e-6


def test_price_of_memory_is_a_derivative():
    """Over eight instances together, the value of ten more blocks is near ten times the price of one, and not above."""
    gained = priced = 0.0
    for seed in range(8):
        instance = scarce(seed, kv_blocks=31)
        prefills, decodes = attainable_work(instance)
        grid = practical_grid(prefills, decodes)
        prices = shadow_prices(instance, CONFIG, grid)
        more = replace(instance, engine=replace(instance.engine, kv_blocks=32))
        gained += optimum(build_fluid(more.with_requests(instance.requests), grid))[0] - prices.bound
        priced += float(prices.memory.sum())
    assert priced > 0
    assert 0.2 * priced <= gained <= 2 * priced


def test_large_instances_get_a_coarser_grid():
    prefills, decodes = attainable_work(loaded(random.Random(5)))
    fine, coarse = practical_grid(prefills, decodes), practical_grid(prefills, decodes, most=30)
    assert coarse.num_fine < fine.num_fine
    assert coarse.fine_s[-1] >= max(work.last_due_s for work in decodes)


def test_summary_of_prices():
    instance = small_instance(random.Random(2), max_requests=12)
    result = FluidCvxpySolver().solve(instance, CONFIG)
    assert result.termination is Termination.OPTIMAL
    assert 0 <= result.stats.detail["mean_price_of_engine_second"] <= result.stats.detail["peak_price_of_engine_second"]
    assert result.stats.detail["price_of_kv_block"] >= 0
