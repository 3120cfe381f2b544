"""The DP kernel equals its reference and the enumeration of all subsets; its bound holds under any label budget."""

import numpy as np
import pytest
from admission_problems import best_by_enumeration, random_admission_problem, random_problem_of_seed
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.engines import engine_named
from slo_opt.domain.plan import admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate
from slo_opt.solvers.dp import kernel, reference
from slo_opt.solvers.dp.solver import DpSolver, plan
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.traces.snapshots import SnapshotShape, random_snapshot

ENOUGH = 10**6


def arrays(problem: AdmissionProblem) -> tuple[np.ndarray, ...]:
    return (
        problem.tier,
        problem.work_ps,
        problem.load_ppm,
        problem.blocks,
        problem.value,
        problem.mandatory,
        problem.length_us,
        problem.supply_ps,
        problem.headroom_ppm,
        problem.free_blocks,
    )


def assert_sound(problem: AdmissionProblem, accepted: np.ndarray, value: int) -> None:
    chosen = np.flatnonzero(accepted).tolist()
    assert problem.check(chosen) is None
    assert problem.total_value(chosen) == value


def assert_equals_enumeration(problem: AdmissionProblem) -> None:
    best = best_by_enumeration(problem)
    optimum = -1 if best is None else problem.total_value(best)
    for solve_arrays in (kernel.solve_arrays, reference.solve_arrays):
        accepted, value, bound, _ = solve_arrays(*arrays(problem), ENOUGH)
        assert (value, bound) == (optimum, optimum)
        if best is not None:
            assert_sound(problem, accepted, value)
    if best is not None:
        for max_labels in (0, 1, 3, 10):
            for solve_arrays in (kernel.solve_arrays, reference.solve_arrays):
                accepted, value, bound, _ = solve_arrays(*arrays(problem), max_labels)
                assert value <= optimum <= bound
                assert_sound(problem, accepted, value)


def test_seeded_raw_problems() -> None:
    for seed in range(400):
        assert_equals_enumeration(random_problem_of_seed(seed, max_candidates=9))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(1_000, 2**32 - 1))
def test_any_raw_problem(seed: int) -> None:
    assert_equals_enumeration(random_problem_of_seed(seed, max_candidates=8))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    engine=st.sampled_from(["opt-6.7b-a100", "llama-3-8b-a100", "llama-3-8b-h100"]),
    num_tiers=st.integers(1, 4),
    pressure=st.sampled_from([None, 0.2, 0.5]),
    growth=st.booleans(),
    weighted=st.booleans(),
)
def test_any_snapshot(
    seed: int, engine: str, num_tiers: int, pressure: float | None, growth: bool, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = SnapshotShape(8, int(rng.integers(0, 60)), num_tiers, overload=2.0, mandatory_share=0.1, weighted=weighted)
    snapshot = random_snapshot(rng, engine_named(engine), shape)
    memory = "growth" if growth else "peak"
    problem = admission_problem(snapshot, engine_named(engine), memory=memory)
    if pressure is not None:
        held = engine_named(engine).kv_blocks - int(problem.free_blocks.min())
        room = max(1, held + int(pressure * problem.blocks.sum()))
        problem = admission_problem(snapshot, engine_named(engine), memory=memory, kv_blocks=room)
    assert_equals_enumeration(problem)


@pytest.mark.parametrize("weighted", [False, True])
def test_reference_equals_kernel_on_larger_problems(weighted: bool) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        problem = random_admission_problem(rng, 18, 10, 3, memory_pressure=seed % 2 == 0, weighted=weighted)
        _, expected, bound, _ = reference.solve_arrays(*arrays(problem), ENOUGH)
        assert expected == bound
        accepted, value, bound, _ = plan(problem, ENOUGH)
        assert (value, bound) == (expected, expected)
        assert_sound(problem, accepted, value)
        for max_labels in (0, 20, 200):
            accepted, value, bound, _ = plan(problem, max_labels)
            assert value <= expected <= bound
            assert_sound(problem, accepted, value)


def test_four_requests_where_the_published_planner_loses_one() -> None:
    """OPT-6.7B on A100, one tier of 100 ms, no memory limit: three of four requests can be accepted."""
    due_prompt = {"2": (0.171823, 577), "3": (0.225135, 2204), "1": (0.282499, 1022), "0": (0.456402, 2319)}
    candidates = tuple(Candidate(name, due_s, 0.1, prompt) for name, (due_s, prompt) in due_prompt.items())
    problem = admission_problem(AdmissionSnapshot(0.0, (), candidates), engine_named("opt-6.7b-a100"))
    result = DpSolver().solve(problem, SolverConfig())
    assert result.termination is Termination.OPTIMAL
    assert result.accepted is not None
    assert {problem.ids[j] for j in result.accepted} == {"0", "1", "2"}
    assert (result.bounds.primal, result.bounds.dual) == (3.0, 3.0)


def test_a_tight_label_budget_is_a_result_and_more_time_closes_it() -> None:
    limited = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        problem = random_admission_problem(rng, 40, 10, 4, memory_pressure=True, weighted=True)
        result = DpSolver(max_effort=5).solve(problem, SolverConfig())
        assert result.bounds.primal is not None
        assert result.bounds.dual is not None
        if result.termination is Termination.OTHER_LIMIT:
            limited += 1
            assert result.bounds.primal < result.bounds.dual
            closed = DpSolver().solve(problem, SolverConfig(time_limit_s=60.0))
            assert closed.bounds.primal is not None
            assert closed.bounds.dual is not None
            assert result.bounds.primal <= closed.bounds.primal <= closed.bounds.dual <= result.bounds.dual
        else:
            assert result.termination is Termination.OPTIMAL
            assert result.bounds.primal == result.bounds.dual
    assert limited > 3


def test_a_mandatory_set_that_does_not_fit_is_infeasible() -> None:
    engine = engine_named("llama-3-8b-a100")
    snapshot = AdmissionSnapshot(
        0.0, (), (Candidate("late", 0.001, 0.05, 4000, mandatory=True), Candidate("ok", 5.0, 0.05, 100))
    )
    result = DpSolver().solve(admission_problem(snapshot, engine), SolverConfig())
    assert result.termination is Termination.INFEASIBLE
    assert result.accepted is None
    assert (result.bounds.primal, result.bounds.dual) == (None, None)


def test_no_candidates() -> None:
    problem = admission_problem(AdmissionSnapshot(0.0, (), ()), engine_named("llama-3-8b-a100"))
    result = DpSolver().solve(problem, SolverConfig())
    assert result.termination is Termination.OPTIMAL
    assert result.accepted == ()
