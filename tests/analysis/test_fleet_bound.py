"""Bounds on fleets: valid for every fleet, equal to what the relaxation says, and never above what a fleet does."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleets import crowded, faster, optimum, relaxed_value, servable, target

from slo_opt.analysis.fleet_stress import STRESSES, Stress, on_engine, slower, stressed
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fleet_cuts import FleetPart, cheapest_fleet
from slo_opt.formulations.fleet_highs import FleetModel, FleetTarget, scaled_columns
from slo_opt.formulations.fleet_work import work_cuts
from slo_opt.formulations.fluid_grid import choose_grid
from slo_opt.formulations.fluid_highs import build_fluid
from slo_opt.solvers.fleet import least_fleet
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.traces.generate import generate
from slo_opt.traces.trace import context_tokens

SEEDS = st.integers(0, 10**9)
CONFIG = SolverConfig()
CLOSE = 1e-4  # requests: what two methods of linear programming differ by


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_only_engine_time_grows_with_the_fleet(seed: int):
    instance = crowded(random.Random(seed))
    grid = choose_grid(*attainable_work(instance))
    one, three = (build_fluid(replace(instance, num_replicas=count), grid) for count in (1, 3))
    upper, row_upper = one.arrays.upper.copy(), one.arrays.row_upper.copy()
    upper[scaled_columns(grid)] *= 3
    row_upper[one.compute.ravel()] *= 3
    assert np.allclose(three.arrays.upper, upper)
    assert np.allclose(three.arrays.row_upper, row_upper)
    for name in ("cost", "lower", "row_lower", "start", "row", "value"):
        assert np.array_equal(getattr(three.arrays, name), getattr(one.arrays, name))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 0.9, 1.0]))
def test_one_program_with_the_fleet_as_a_variable_says_what_a_search_over_fleets_says(seed: int, share: float):
    instance = crowded(random.Random(seed))
    promised = target(instance, share)
    model = FleetModel([instance], [promised])
    bound = least_fleet([instance], [promised], [1.0], [64], CONFIG)
    assert bound.termination is Termination.OPTIMAL
    (count,) = bound.counts
    assert relaxed_value(model, [count]) >= promised.needed - CLOSE
    assert count == 0 or relaxed_value(model, [count - 1]) < promised.needed + CLOSE
    values = [relaxed_value(model, [number]) for number in range(count + 2)]
    assert all(more >= less - CLOSE for less, more in itertools.pairwise(values))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 1e-3, 1.0]))
def test_any_multipliers_bound_every_fleet(seed: int, noise: float):
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    instance = crowded(rng)
    instances = [instance, on_engine(instance, faster(instance.engine, 2.0))]
    promised = target(instance, 0.8)
    model = FleetModel(instances, [promised])
    problems = [model.value_problem([1, 1]), model.price_problem([1.0, 1.5], [64, 64])]
    for arrays in problems:
        _, multipliers = optimum(arrays)
        spoiled = multipliers + noise * draws.standard_normal(len(multipliers)) * (1 + np.abs(multipliers))
        cut = model.cut(spoiled)
        if cut is None:
            continue
        assert min(cut.per_replica) >= 0
        for counts in [(0, 0), (1, 0), (0, 1), (1, 1), (2.5, 0.5), (7, 3)]:
            assert cut.most(counts) >= relaxed_value(model, counts) - CLOSE


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 0.9, 1.0]))
def test_cuts_without_a_solver_hold_for_every_fleet(seed: int, share: float):
    rng = random.Random(seed)
    instance = crowded(rng, most=14)
    instances = [instance, on_engine(instance, faster(instance.engine, 1.7))]
    promised = target(instance, share)
    for kinds in (1, 2):
        model = FleetModel(instances[:kinds], [promised])
        cuts = work_cuts(instances[:kinds], promised.needed, [1.0, 1.5][:kinds])
        for cut, counts in itertools.product(cuts, [(0, 0), (1, 0), (0.3, 0.2), (2, 1)]):
            assert cut.most(counts[:kinds]) >= min(relaxed_value(model, counts[:kinds]), promised.needed) - CLOSE


def test_cuts_without_a_solver_ask_for_fleets():
    instance = generate("coder", rate=60.0, duration_s=60.0, seed=1, engine="llama-3-8b-a100").to_instance()
    count = len(instance.requests)
    asked = []
    for share in (0.5, 0.9, 0.99):
        needed = round(share * count)
        (least,) = cheapest_fleet([FleetPart(count, work_cuts([instance], needed, [1.0]))], needed, [1.0], [512])
        asked.append(least)
    assert asked == sorted(asked)
    assert asked[-1] >= 3


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.floats(0.4, 3.0))
def test_the_cheapest_mix_is_that_of_all_mixes(seed: int, price: float):
    instance = crowded(random.Random(seed), most=8)
    instances = [instance, on_engine(instance, faster(instance.engine, 2.0))]
    promised, most = target(instance, 0.9), 4
    model = FleetModel(instances, [promised])
    bound = least_fleet(instances, [promised], [1.0, price], [most, most], CONFIG)
    values = {counts: relaxed_value(model, counts) for counts in itertools.product(range(most + 1), repeat=2)}
    for slack in (CLOSE, -CLOSE):  # a mix that is feasible by a hair may count either way
        feasible = [a + price * b for (a, b), value in values.items() if value >= promised.needed - slack]
        if bound.counts is None:
            assert slack > 0 or not feasible
        elif slack > 0:
            assert bound.price >= min(feasible) - 1e-9
        elif feasible:
            assert bound.price <= min(feasible) + 1e-9


@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_promises_by_class(seed: int):
    rng = random.Random(seed)
    instance = crowded(rng)
    by_class: dict[str, list[int]] = {}
    for index in servable(instance):
        by_class.setdefault(instance.slo_of(instance.requests[index]).name, []).append(index)
    targets = [FleetTarget(tuple(who), max(1, round(0.7 * len(who)))) for who in by_class.values()]
    together = least_fleet([instance], targets, [1.0], [64], CONFIG)
    for one in targets:
        assert together.counts >= least_fleet([instance], [one], [1.0], [64], CONFIG).counts
    model = FleetModel([instance], targets)
    needed = sum(one.needed for one in targets)
    assert relaxed_value(model, together.counts) >= needed - CLOSE
    if together.counts[0]:
        assert relaxed_value(model, [together.counts[0] - 1]) < needed + CLOSE


@pytest.mark.parametrize("limit_s", [0.0, 1e-3, 0.05])
def test_a_time_limit_proves_less_never_more(limit_s: float):
    for seed in range(5):
        instance = crowded(random.Random(seed), most=14)
        promised = target(instance, 0.9)
        whole = least_fleet([instance], [promised], [1.0], [64], CONFIG)
        hurried = least_fleet([instance], [promised], [1.0], [64], SolverConfig(time_limit_s=limit_s))
        # Integrality may prove more where there is time for it.
        assert hurried.counts <= whole.counts or hurried.by == "integrality"
        if hurried.termination is not Termination.OPTIMAL:
            assert hurried.counts >= hurried.work_counts


def test_no_fleet_within_the_limit():
    instance = crowded(random.Random(3), most=14)
    promised = target(instance, 1.0)
    needed = least_fleet([instance], [promised], [1.0], [64], CONFIG).counts[0]
    found = least_fleet([instance], [promised], [1.0], [needed - 1], CONFIG) if needed > 1 else None
    if found is not None:
        assert found.counts is None


def test_relative_promises_do_not_move_with_the_engine():
    instance = crowded(random.Random(2))
    other = on_engine(instance, slower(instance.engine, 1.1))
    for request in instance.requests:
        for stage in request.stages:
            if stage.prompt_tokens:
                assert other.ttft_limit_s(stage) == instance.ttft_limit_s(stage)
    assert other.with_requests(instance.requests[:1]).ttft_limit_s(instance.requests[0].stages[0]) == pytest.approx(
        instance.ttft_limit_s(instance.requests[0].stages[0])
    )
    assert other.engine.batch_time_s(100) == pytest.approx(1.1 * instance.engine.batch_time_s(100))
    assert on_engine(other, instance.engine).ttft_limit_s(instance.requests[0].stages[0]) == pytest.approx(
        instance.ttft_limit_s(instance.requests[0].stages[0])
    )


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([1.2, 3.0, 0.5]))
def test_longer_requests_fit_into_the_context(seed: int, factor: float):
    instance = crowded(random.Random(seed))
    instance = replace(instance, engine=replace(instance.engine, max_model_len=900))
    grown = stressed(instance, Stress("longer", lengths=factor))
    for before, after in zip(instance.requests, grown.requests, strict=True):
        if context_tokens(before) <= 900:
            assert context_tokens(after) <= 900
            assert (after.prompt_tokens >= before.prompt_tokens) == (factor >= 1)
    quick = stressed(instance, Stress("faster", rate=2.0))
    assert [r.arrival_s for r in quick.requests] == pytest.approx([r.arrival_s / 2 for r in instance.requests])


def test_stresses_are_checked():
    assert STRESSES[0].name == "as it is"
    with pytest.raises(InvalidInputError, match="factor"):
        Stress("nothing", rate=0.0)
