"""Level 2 by HiGHS on arrays."""

from importlib import import_module
from typing import Any

import numpy as np

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.formulations.admission_highs import AdmissionArrays, admission_arrays
from slo_opt.solvers.highs_run import run_highs
from slo_opt.solvers.interface import AdmissionResult, SolverConfig
from slo_opt.solvers.verified import Attempt, SecondsLeft, solve_verified
from slo_opt.solvers.versions import require


class HighsAdmissionSolver:
    """HiGHS on `slo_opt.formulations.admission_highs`.

    Raises
    ------
    SolverNotAvailableError
        highspy is missing or a version that gives wrong answers.
    """

    name = "highs"

    def __init__(self) -> None:
        self._versions = require("highspy")
        import_module("highspy")  # here, so that it is not part of the time of a solve

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""

        def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
            arrays = admission_arrays(problem, excluded)
            outcome = run_highs(_maximisation(arrays), config, left_s())
            chosen = None
            if outcome.point is not None:
                chosen = tuple(int(j) for j in np.flatnonzero(outcome.point[: arrays.num_candidates] > 0.5))
            detail = {"nodes": float(outcome.nodes), "iterations": float(outcome.iterations)}
            return Attempt(outcome.termination, chosen, outcome.dual, detail)

        return solve_verified(problem, config, self._versions, attempt)


def _maximisation(arrays: AdmissionArrays) -> Any:
    """A `highspy.Highs` that holds the arrays."""
    import highspy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(arrays.cost), len(arrays.upper)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = arrays.cost, arrays.lower_bound, arrays.upper_bound
    lp.row_lower_, lp.row_upper_ = np.full(len(arrays.upper), -highspy.kHighsInf), arrays.upper
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[integer] for integer in arrays.integer.astype(int).tolist()]
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.searchsorted(arrays.row, np.arange(len(arrays.upper) + 1))
    lp.a_matrix_.index_, lp.a_matrix_.value_ = arrays.column, arrays.coefficient
    highs = highspy.Highs()
    highs.silent()
    if highs.passModel(lp) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused the model")
    return highs
