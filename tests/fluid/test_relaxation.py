"""Every legal schedule is a feasible point of the relaxation, so its value is at most the bound."""

import random
from dataclasses import replace

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tight_schedules import ENGINE, attained, tight_instance

from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.domain.slo import SloClass
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid, make_grid
from slo_opt.formulations.fluid_highs import build_fluid

SEEDS = st.integers(0, 10**9)


def random_grid(instance: Instance, rng: random.Random, pooled: bool) -> FluidGrid:
    resolution_s = rng.choice([1e-3, 5e-3, 0.02, 0.1])
    coarse_s = resolution_s * rng.choice([1, 2, 5])
    return make_grid(*attainable_work(instance), resolution_s=resolution_s, coarse_s=coarse_s, pooled=pooled)


def admits(instance: Instance, grid: FluidGrid, requests: list[int]) -> bool:
    """Whether the relaxation has a point that accepts all of the requests whole."""
    model = build_fluid(instance, grid)
    model.arrays.lower = model.arrays.lower.copy()
    model.arrays.lower[[model.accept[i] for i in requests]] = 1.0
    highs = model.arrays.to_highs()
    highs.run()
    return highs.getModelStatus() == highspy.HighsModelStatus.kOptimal


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_what_a_tight_schedule_attains_is_feasible(seed, pooled, crowded):
    """Limits that the schedule just meets leave the relaxation no slack but its own."""
    rng = random.Random(seed)
    instance, schedule = tight_instance(rng, crowded=crowded)
    requests = attained(instance, schedule)
    if requests:
        assert admits(instance, random_grid(instance, rng, pooled), requests)


def test_the_tight_schedules_are_not_trivial():
    finished = offered = preempted = split = 0
    for seed in range(60):
        instance, schedule = tight_instance(random.Random(seed))
        finished += len(attained(instance, schedule))
        offered += len(instance.requests)
        preempted += len(schedule.preempted) > 0
        split += len(set(schedule.replica.tolist())) > 1
    assert finished > 0.8 * offered
    assert min(preempted, split) > 10


@pytest.mark.parametrize("seed", [40, 59, 123, 172, 191, 330, 450])
def test_a_step_that_spans_a_boundary_counts_in_part(seed):
    """Regression: leads were capped by whole steps, which cut off schedules that decode ahead at full speed."""
    instance, schedule = tight_instance(random.Random(seed))
    for resolution_s, per_coarse in ((1e-3, 1), (1e-3, 2), (1e-3, 5), (5e-3, 1), (0.02, 1)):
        grid = make_grid(
            *attainable_work(instance), resolution_s=resolution_s, coarse_s=resolution_s * per_coarse, pooled=False
        )
        assert admits(instance, grid, attained(instance, schedule))


def test_a_late_chunk_holds_more_work_than_tokens():
    """Regression: full batches of a long prompt, and beside each chunk a decode step that has to be on time."""
    engine = replace(ENGINE, prefill_pair_s=4e-6, request_s=0.0, kv_blocks=1000, max_num_batched_tokens=257)
    first_s = engine.zero_load_ttft_s(10)
    seconds = [
        engine.batch_time_s(257, decode_context_tokens=10 + k, prefill_pairs=256 * (256 * k + 128.5), num_requests=2)
        for k in range(4)
    ]
    ends_s = [first_s + sum(seconds[: k + 1]) for k in range(4)]
    classes = {f"step {k}": SloClass(f"step {k}", 1e3 * span_s, ttft_slowdown=1.0) for k, span_s in enumerate(seconds)}
    classes["long"] = SloClass("long", 1.0, ttft_ms=1e3 * sum(seconds))
    phases = (Stage(10, 2, "step 0"), *(Stage(0, 1, f"step {k}") for k in (1, 2, 3)))
    requests = (Request("a", 0.0, phases), Request("b", first_s, (Stage(1024, 1, "long"),)))
    instance = Instance("chunks", requests, classes, engine)
    starts_s = [first_s, *ends_s[:-1]]
    batches = [Batch(0.0, [0], [10]), *(Batch(start_s, [0, 1], [1, 256]) for start_s in starts_s)]
    assert attained(instance, Schedule.from_batches(batches)) == [0, 1]
    boundaries_s = np.array([-1e-5, first_s + 1e-5, *(end_s + 1e-5 for end_s in ends_s)])
    for pooled in (False, True):
        assert admits(instance, FluidGrid(boundaries_s, np.arange(6), pooled), [0, 1])
