"""Grids stay small whatever the trace, and slots of empty time before it cost nothing."""

import random
import threading
from dataclasses import replace

import pytest
from test_bounds import loaded

from slo_opt.domain.instance import Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import MOST_COARSE, choose_grid
from slo_opt.solvers.fluid_cvxpy import practical_grid
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.registry import schedule_solver


def later(instance: Instance, by_s: float, only_last: bool = False) -> Instance:
    """The instance with its requests, or the last of them, arriving later."""
    requests = [replace(request, arrival_s=request.arrival_s + by_s) for request in instance.requests]
    if only_last:
        requests = [*instance.requests[:-1], requests[-1]]
    return instance.with_requests(tuple(requests))


@pytest.mark.parametrize("by_s", [1e5, 9e8])
def test_arrival_long_after_zero_costs_nothing(by_s):
    instance = loaded(random.Random(4))
    grid = choose_grid(*attainable_work(instance))
    moved = choose_grid(*attainable_work(later(instance, by_s)))
    assert moved.num_fine <= grid.num_fine + 2
    assert moved.fine_s[0] >= by_s - 1


@pytest.mark.parametrize("gap_s", [1e5, 9e8])
def test_long_gaps_are_cut_into_long_slots(gap_s):
    work = attainable_work(later(loaded(random.Random(4)), gap_s, only_last=True))
    grid = choose_grid(*work)
    assert grid.num_coarse <= MOST_COARSE + 1
    assert grid.fine_s[-1] >= max(prefill.due_s for prefill in work[0])


def test_coarsening_ends_where_windows_outnumber_what_is_wanted():
    work = attainable_work(loaded(random.Random(5)))
    assert practical_grid(*work, most=1).num_coarse == 1


def test_a_stop_from_outside_reaches_highs():
    """HiGHS looks at a request to stop only if it was told to; to its end this would take hours."""
    instance = loaded(random.Random(1))
    requests = [
        replace(request, id=f"{request.id}.{k}", arrival_s=request.arrival_s + 0.02 * k)
        for k in range(100)
        for request in instance.requests
    ]
    crowded = replace(instance, requests=tuple(sorted(requests, key=lambda request: request.arrival_s)))
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    result = schedule_solver("highs").solve(crowded, SolverConfig(stop=stop))
    assert result.termination is Termination.INTERRUPTED
