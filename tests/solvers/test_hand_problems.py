"""The hand-made optima are right by enumeration: what the conformance suite expects is true."""

from itertools import combinations

import pytest
from hand_problems import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_best_is_the_only_best_set(case: Case) -> None:
    count = case.problem.num_candidates
    feasible = [
        chosen
        for size in range(count + 1)
        for chosen in combinations(range(count), size)
        if case.problem.check(chosen) is None
    ]
    if case.best is None:
        assert not feasible
        return
    top = max(case.problem.total_value(chosen) for chosen in feasible)
    assert [chosen for chosen in feasible if case.problem.total_value(chosen) == top] == [case.best]
