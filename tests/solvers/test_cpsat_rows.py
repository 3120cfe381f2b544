"""Rows of any size reach CP-SAT exactly, also those that its 64-bit sums cannot hold."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from slo_opt.formulations.admission_cpsat import MAX_ROW_SUM, add_at_most


class _AllPoints(cp_model.CpSolverSolutionCallback):
    def __init__(self, literals: list[cp_model.IntVar]) -> None:
        super().__init__()
        self.literals = literals
        self.points: set[tuple[int, ...]] = set()

    def on_solution_callback(self) -> None:
        self.points.add(tuple(int(self.value(literal)) for literal in self.literals))


def points_of(amounts: list[int], limit: int, guarded: bool) -> set[tuple[int, ...]]:
    """All 0-1 points that CP-SAT finds, the guard last."""
    model = cp_model.CpModel()
    literals = [model.new_bool_var("") for _ in amounts]
    guard = model.new_bool_var("")
    if not guarded:
        model.add(guard == 1)
    add_at_most(model, list(zip(amounts, literals, strict=True)), limit, only_if=guard if guarded else None)
    assert not model.validate()
    solver = cp_model.CpSolver()
    solver.parameters.enumerate_all_solutions = True
    solver.parameters.cp_model_presolve = False
    seen = _AllPoints([*literals, guard])
    solver.solve(model, seen)
    return seen.points


def expected(amounts: list[int], limit: int, guarded: bool) -> set[tuple[int, ...]]:
    points = {
        (*point, 1)
        for point in product((0, 1), repeat=len(amounts))
        if sum(a * x for a, x in zip(amounts, point, strict=True)) <= limit
    }
    return points | {(*point, 0) for point in product((0, 1), repeat=len(amounts))} if guarded else points


@settings(max_examples=60, deadline=None)
@given(
    amounts=st.lists(st.integers(0, 1 << 66) | st.integers((1 << 60) - 3, (1 << 60) + 3), min_size=1, max_size=5),
    pick=st.lists(st.booleans(), min_size=5, max_size=5),
    off_by=st.integers(-2, 2),
    guarded=st.booleans(),
)
def test_same_points_as_by_enumeration(amounts: list[int], pick: list[bool], off_by: int, guarded: bool) -> None:
    """Limits within 2 of the sum of some of the amounts: where rounding would decide."""
    limit = sum(a for a, chosen in zip(amounts, pick, strict=False) if chosen) + off_by
    assert points_of(amounts, limit, guarded) == expected(amounts, limit, guarded)


@pytest.mark.parametrize("limit", [(1 << 62) - 1, 1 << 62, (1 << 62) + 1])
def test_a_row_that_must_be_split(limit: int) -> None:
    amounts = [1 << 61, 1 << 61, 1, (1 << 61) + 1]
    assert sum(amounts) > MAX_ROW_SUM
    assert points_of(amounts, limit, False) == expected(amounts, limit, False)
