"""The offline solvers: what they promise to anyone, and how near the optimum they come where it is known."""

import random
from dataclasses import replace

import numpy as np
import pytest
from test_kernel import loaded_instance

from slo_opt import Instance, Request, SloClass, Stage, engine_named, evaluate
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.offline.rolling import RollingDpSolver
from slo_opt.solvers.offline.search import SearchSolver
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.small import small_instance


@pytest.mark.parametrize("seed", range(6))
def test_search_is_never_worse_than_its_starts(seed: int) -> None:
    instance = loaded_instance(seed)
    rolled = RollingDpSolver().solve(instance, SolverConfig())
    found = SearchSolver(iterations=300).solve(instance, SolverConfig(seed=seed))
    assert found.bounds.primal is not None
    assert rolled.bounds.primal is not None
    assert found.schedule is not None
    assert found.bounds.primal >= max(rolled.bounds.primal, found.stats.detail["insertion"])
    assert evaluate(instance, found.schedule).value == found.bounds.primal


def test_a_seed_and_a_number_of_moves_fix_the_schedule() -> None:
    instance = loaded_instance(8, count=200)
    first, second, other = (
        SearchSolver(iterations=400).solve(instance, SolverConfig(seed=seed)).schedule for seed in (7, 7, 8)
    )
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.to_dict() == second.to_dict()
    assert first.to_dict() != other.to_dict()


@pytest.mark.parametrize("solver", [SearchSolver(iterations=100), RollingDpSolver()])
def test_replicas_serve_more_and_stay_legal(solver: SearchSolver | RollingDpSolver) -> None:
    single = loaded_instance(0)
    values = []
    for replicas in (1, 3):
        result = solver.solve(replace(single, num_replicas=replicas), SolverConfig())
        assert result.schedule is not None
        assert result.bounds.primal is not None
        values.append(result.bounds.primal)
    assert set(result.schedule.replica.tolist()) == {0, 1, 2}
    assert values[1] > values[0]


@pytest.mark.parametrize("solver", [SearchSolver(iterations=10**9), RollingDpSolver()])
@pytest.mark.parametrize("after", [2, 4])
def test_interrupt_returns_the_best_so_far(solver: SearchSolver | RollingDpSolver, after: int) -> None:
    calls = 0

    def interrupt(phrase: str, share: float | None) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    instance = loaded_instance(2, count=300)
    result = solver.solve(instance, SolverConfig(progress=interrupt))
    assert result.termination is Termination.INTERRUPTED
    assert result.schedule is not None
    assert result.bounds.primal == evaluate(instance, result.schedule).value > 0


def test_time_limit_ends_the_search() -> None:
    result = SearchSolver().solve(loaded_instance(0, count=120), SolverConfig(time_limit_s=0.4))
    assert result.termination is Termination.TIME_LIMIT
    assert result.schedule is not None


def test_all_attained_is_optimal_and_says_so() -> None:
    slo = SloClass("chat", tpot_ms=100, ttft_slowdown=5)
    requests = tuple(Request(f"r{i}", 10.0 * i, (Stage(500, 20, "chat"),)) for i in range(4))
    impossible = Request("long", 50.0, (Stage(500, 2000, "chat"),))
    instance = Instance("idle", (*requests, impossible), {"chat": slo}, engine_named("opt-6.7b-a100"))
    for name in ("search", "dp"):
        result = schedule_solver(name).solve(instance, SolverConfig(time_limit_s=5))
        assert result.termination is Termination.OPTIMAL
        assert (result.bounds.primal, result.bounds.dual) == (4.0, 4.0)


def test_a_hint_is_another_start() -> None:
    instance = loaded_instance(4)
    hint = np.random.default_rng(0).random(len(instance.requests))
    result = SearchSolver(iterations=0, hint=hint).solve(instance, SolverConfig())
    plain = SearchSolver(iterations=0).solve(instance, SolverConfig())
    assert result.bounds.primal is not None
    assert plain.bounds.primal is not None
    assert result.bounds.primal >= plain.bounds.primal


def test_search_reaches_most_exact_optima() -> None:
    pytest.importorskip("ortools")
    exact = schedule_solver("cpsat")
    reached = judged = 0
    for seed in range(40):
        instance = small_instance(random.Random(seed), max_requests=4)
        optimum = exact.solve(instance, SolverConfig(time_limit_s=2.0)).bounds
        found = SearchSolver(iterations=200).solve(instance, SolverConfig()).bounds.primal
        assert found is not None
        assert optimum.dual is None or found <= optimum.dual + 1e-9
        if optimum.gap() == 0.0:
            judged += 1
            reached += found >= (optimum.primal or 0.0) - 1e-9
    assert judged >= 20
    assert reached >= 0.8 * judged, f"{reached} of {judged}"
