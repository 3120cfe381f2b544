"""One test per registered admission solver, chosen with ``--solvers``."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from slo_opt.solvers.interface import AdmissionSolver
from slo_opt.solvers.registry import ADMISSION_SOLVERS, admission_solver

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # random_plans


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "solver_name" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--solvers") or list(ADMISSION_SOLVERS)
    unknown = [name for name in wanted if name not in ADMISSION_SOLVERS]
    if unknown:
        raise pytest.UsageError(f"--solvers {unknown[0]}: expected one of {', '.join(ADMISSION_SOLVERS)}")
    written = [name for name in wanted if find_spec(ADMISSION_SOLVERS[name].split(":")[0])]
    metafunc.parametrize("solver_name", written)


@pytest.fixture
def solver(solver_name: str) -> AdmissionSolver:
    return admission_solver(solver_name)
