"""What every admission solver must do. A wrong answer of one of them becomes a case here, for all."""

import dataclasses
import signal
from itertools import pairwise

import numpy as np
import pytest
from admission_problems import best_by_enumeration, random_admission_problem, random_problem_of_seed
from hand_problems import CASES, FULL, MS, Case, knife_edge_problem, problem

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.errors import InvalidInputError
from slo_opt.solvers import stoppable
from slo_opt.solvers.interface import AdmissionResult, AdmissionSolver, SolverConfig, Termination
from slo_opt.solvers.registry import admission_solver


def assert_consistent(problem: AdmissionProblem, result: AdmissionResult) -> None:
    """The parts of a result agree with each other and with the problem."""
    bounds = result.bounds
    assert result.stats.wall_s >= 0
    if result.accepted is None:
        assert bounds.primal is None
    else:
        assert problem.check(result.accepted) is None
        assert list(result.accepted) == sorted(set(result.accepted))
        assert bounds.primal == problem.total_value(result.accepted)
        assert bounds.dual is None or bounds.dual >= bounds.primal
    if result.termination is Termination.OPTIMAL:
        assert bounds.primal is not None
        assert bounds.dual == bounds.primal
    if result.termination is Termination.INFEASIBLE:
        assert result.accepted is None
        assert bounds.dual is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hand_made(solver: AdmissionSolver, case: Case) -> None:
    result = solver.solve(case.problem, SolverConfig())
    assert_consistent(case.problem, result)
    assert result.accepted == case.best
    assert result.termination is (Termination.INFEASIBLE if case.best is None else Termination.OPTIMAL)


# 52 and 171: OR-Tools 9.15 proves a wrong optimum of these in presolve (google/or-tools issue 5293).
@pytest.mark.parametrize("seed", [*range(25), 52, 171])
def test_random_small(solver: AdmissionSolver, seed: int) -> None:
    random_problem = random_problem_of_seed(seed, 8 if seed == 52 else 10 if seed == 171 else 7)
    best = best_by_enumeration(random_problem)
    result = solver.solve(random_problem, SolverConfig())
    assert_consistent(random_problem, result)
    if best is None:
        assert result.termination is Termination.INFEASIBLE
    else:
        assert result.termination is Termination.OPTIMAL
        assert result.bounds.primal == random_problem.total_value(best)


@pytest.mark.parametrize("seed", range(25))
def test_feasible_by_a_hair(solver: AdmissionSolver, seed: int) -> None:
    tight = knife_edge_problem(seed)
    best = best_by_enumeration(tight)
    assert best is not None
    result = solver.solve(tight, SolverConfig())
    assert_consistent(tight, result)
    assert result.termination is Termination.OPTIMAL
    assert result.bounds.primal == tight.total_value(best)


def test_same_value_under_every_seed(solver: AdmissionSolver) -> None:
    random_problem = random_admission_problem(np.random.default_rng(5), 16, memory_pressure=True, weighted=True)
    values = {solver.solve(random_problem, SolverConfig(seed=seed)).bounds.primal for seed in (0, 1, 12345)}
    assert len(values) == 1


def test_two_threads(solver: AdmissionSolver) -> None:
    random_problem = random_admission_problem(np.random.default_rng(6), 16, weighted=True)
    results = [solver.solve(random_problem, SolverConfig(threads=threads)) for threads in (1, 2, 1)]
    assert len({result.bounds.primal for result in results}) == 1
    assert all(result.termination is Termination.OPTIMAL for result in results)


def test_relative_gap_is_kept(solver: AdmissionSolver) -> None:
    random_problem = random_admission_problem(np.random.default_rng(7), 40, weighted=True, memory_pressure=True)
    exact = solver.solve(random_problem, SolverConfig()).bounds.primal
    result = solver.solve(random_problem, SolverConfig(relative_gap=0.2))
    assert result.termination is Termination.OPTIMAL
    assert result.bounds.primal is not None
    assert result.bounds.dual is not None
    assert exact is not None
    assert result.bounds.primal <= exact <= result.bounds.dual
    assert result.bounds.dual - result.bounds.primal <= 0.2 * result.bounds.primal


def test_one_more_never_helps_the_others(solver: AdmissionSolver) -> None:
    """A longer prompt, a heavier decode, a mandatory mark: the optimum can only fall."""
    easy = random_admission_problem(np.random.default_rng(8), 12, weighted=True)
    marked = easy.mandatory.copy()
    marked[int(np.argmin(easy.value))] = True
    harder = [
        easy,
        dataclasses.replace(easy, work_ps=easy.work_ps + MS),
        dataclasses.replace(easy, work_ps=easy.work_ps + MS, load_ppm=easy.load_ppm + 1000),
        dataclasses.replace(easy, work_ps=easy.work_ps + MS, load_ppm=easy.load_ppm + 1000, mandatory=marked),
    ]
    values = [solver.solve(one, SolverConfig()).bounds.primal or 0.0 for one in harder]
    assert all(before >= after for before, after in pairwise(values))


def test_time_limit_of_nothing(solver: AdmissionSolver) -> None:
    """The limit is a result: the mandatory ones at least, and a bound that holds."""
    marked = problem([1000] * 4, [MS // 4] * 4, mandatory=[2], value=[1, 2, 3, 4])
    result = solver.solve(marked, SolverConfig(time_limit_s=0.0))
    assert result.termination in (Termination.TIME_LIMIT, Termination.OPTIMAL)
    assert result.accepted is not None
    assert 2 in result.accepted
    assert result.bounds.dual is None or result.bounds.dual >= 10


def test_short_time_limit_keeps_bounds_valid(solver: AdmissionSolver) -> None:
    big = random_admission_problem(np.random.default_rng(3), 150, 4, 4, memory_pressure=True, weighted=True)
    result = solver.solve(big, SolverConfig(time_limit_s=0.05))
    assert_consistent(big, result)
    assert result.termination in (Termination.TIME_LIMIT, Termination.OPTIMAL)
    assert result.bounds.primal is not None
    assert result.bounds.primal <= 217
    assert result.bounds.dual is None or result.bounds.dual >= 217


def test_interrupt_returns_the_best_so_far(
    solver: AdmissionSolver, solver_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stoppable, "_TICK_S", 0.005)
    hard = random_admission_problem(
        np.random.default_rng(3), 300, 4, 4, memory_pressure=True, weighted=True, tightness=1.5
    )
    said: list[str] = []

    def ctrl_c(phrase: str, share: float | None) -> None:
        said.append(phrase)
        assert share is None or share >= 0
        if len(said) == 1:
            signal.raise_signal(signal.SIGINT)

    result = solver.solve(hard, SolverConfig(progress=ctrl_c))
    assert_consistent(hard, result)
    assert result.accepted is not None
    if solver_name != "dp":  # which may be done before it asks
        assert said
        assert result.termination is Termination.INTERRUPTED


def test_log_goes_to_stderr(solver: AdmissionSolver, solver_name: str, capfd: pytest.CaptureFixture[str]) -> None:
    random_problem = random_admission_problem(np.random.default_rng(9), 30, memory_pressure=True, weighted=True)
    solver.solve(random_problem, SolverConfig())
    assert capfd.readouterr() == ("", "")
    solver.solve(random_problem, SolverConfig(log=True))
    out, err = capfd.readouterr()
    assert out == ""
    if solver_name != "dp":
        assert len(err.splitlines()) > 3


def test_names_its_versions(solver: AdmissionSolver, solver_name: str) -> None:
    result = solver.solve(problem([10], [1]), SolverConfig())
    assert solver.name == solver_name
    assert result.stats.versions
    assert all(version[0].isdigit() for version in result.stats.versions.values())


def test_does_not_change_the_problem(solver: AdmissionSolver) -> None:
    given = random_problem_of_seed(4)
    before = {field.name: np.array(getattr(given, field.name)) for field in dataclasses.fields(given)}
    solver.solve(given, SolverConfig())
    assert all(np.array_equal(before[name], getattr(given, name)) for name in before)


def test_values_count_not_requests(solver: AdmissionSolver) -> None:
    """Three small ones against one that is worth more than all of them."""
    heavy = problem([1000] * 4, [MS, MS // 3, MS // 3, MS // 3], value=[4, 1, 1, 1], share_ppm=[FULL, FULL])
    assert solver.solve(heavy, SolverConfig()).accepted == (0,)


def test_unknown_solver_names_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"'cpsta'; did you mean 'cpsat'\? Known: dp, highs"):
        admission_solver("cpsta")
