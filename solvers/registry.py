"""Solvers by name, imported only when asked for."""

import difflib
from importlib import import_module
from typing import Any, cast

from slo_opt.domain.errors import InvalidInputError
from slo_opt.solvers.interface import AdmissionSolver, ScheduleSolver

ADMISSION_SOLVERS = {
    "dp": "slo_opt.solvers.dp.solver:DpSolver",
    "highs": "slo_opt.solvers.highs:HighsAdmissionSolver",
    "pyomo": "slo_opt.solvers.pyomo:PyomoAdmissionSolver",
    "cpsat": "slo_opt.solvers.cpsat:CpSatAdmissionSolver",
    "cvxpy": "slo_opt.solvers.cvxpy:CvxpyAdmissionSolver",
}
SCHEDULE_SOLVERS = {
    "dp": "slo_opt.solvers.offline.rolling:RollingDpSolver",
    "search": "slo_opt.solvers.offline.search:SearchSolver",
    "highs": "slo_opt.solvers.fluid:FluidHighsSolver",
    "cvxpy": "slo_opt.solvers.fluid_cvxpy:FluidCvxpySolver",
    "cpsat": "slo_opt.solvers.batches:BatchesCpSatSolver",
}


def _load(name: str, table: dict[str, str], kind: str) -> Any:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(f"unknown {kind} method {name!r}; {hint}Known: {', '.join(table)}")
    module, attribute = table[name].split(":")
    return getattr(import_module(module), attribute)()


def admission_solver(name: str) -> AdmissionSolver:
    """The solver of that name for admission plans (level 2).

    Raises
    ------
    InvalidInputError
        No such solver.
    SolverNotAvailableError
        Its library is not installed or is a version that gives wrong answers.
    """
    return cast(AdmissionSolver, _load(name, ADMISSION_SOLVERS, "admission"))


def schedule_solver(name: str) -> ScheduleSolver:
    """The solver of that name for whole traces (levels 1 and 3); raises like `admission_solver`."""
    return cast(ScheduleSolver, _load(name, SCHEDULE_SOLVERS, "solve"))
