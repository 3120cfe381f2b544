"""A seeded part of benchmarks/cross_check.py: every solver and enumeration agree on plans with all features."""

from collections import Counter
from importlib.util import find_spec

import pytest
from admission_problems import best_by_enumeration, random_problem_of_seed
from cross_check import compare
from random_plans import best_value, random_plan

from slo_opt.solvers.interface import AdmissionSolver
from slo_opt.solvers.registry import ADMISSION_SOLVERS, admission_solver


@pytest.fixture(scope="module")
def solvers() -> dict[str, AdmissionSolver]:
    written = [name for name, place in ADMISSION_SOLVERS.items() if find_spec(place.split(":")[0])]
    return {name: admission_solver(name) for name in written}


@pytest.mark.parametrize("block", range(5))
def test_all_solvers_agree(block: int, solvers: dict[str, AdmissionSolver]) -> None:
    for seed in range(100_000 + 20 * block, 100_000 + 20 * block + 15):
        traits, said = compare(seed, solvers, Counter())
        assert len(set(said.values())) == 1, (seed, traits, said)
        assert said["highs"].startswith(("optimal ", "infeasible"))


def test_the_plans_have_every_feature() -> None:
    seen: dict[str, set[str]] = {}
    for seed in range(100_000, 100_120):
        for name, trait in random_plan(seed).traits.items():
            seen.setdefault(name, set()).add(trait)
    assert seen["tiers"] == {"1", "2", "3", "4"}
    assert seen["mandatory"] == seen["speculation"] == {"yes", "no"}
    assert seen["values"] == {"weighted", "counted"}
    assert len(seen["memory"]) == 4
    assert len(seen["deadlines"]) == len(seen["departures"]) == 3


@pytest.mark.parametrize("seed", range(40))
def test_the_two_enumerations_agree(seed: int) -> None:
    problem = random_problem_of_seed(seed, 7)
    best = best_by_enumeration(problem)
    assert best_value(problem) == (None if best is None else problem.total_value(best))
