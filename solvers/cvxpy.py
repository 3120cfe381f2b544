"""Level 2 by CVXPY, whose cone program goes to HiGHS."""

from importlib import import_module
from typing import Any

import numpy as np

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.solvers.highs_run import run_highs
from slo_opt.solvers.interface import AdmissionResult, SolverConfig, Termination
from slo_opt.solvers.verified import Attempt, SecondsLeft, solve_verified
from slo_opt.solvers.versions import require


class CvxpyAdmissionSolver:
    """HiGHS on `slo_opt.formulations.admission_cvxpy`.

    CVXPY's own call of HiGHS can neither be interrupted nor return an incumbent at a limit; so CVXPY compiles the
    problem, and the arrays it would hand to HiGHS are run here.

    Raises
    ------
    SolverNotAvailableError
        CVXPY or highspy is missing or a version that gives wrong answers.
    """

    name = "cvxpy"

    def __init__(self) -> None:
        self._versions = require("cvxpy", "highspy")
        import_module("slo_opt.formulations.admission_cvxpy")  # here, so that it is not part of the time of a solve

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""

        def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
            if not problem.num_candidates:
                return Attempt(Termination.OPTIMAL, (), 0.0)
            import cvxpy

            from slo_opt.formulations.admission_cvxpy import admission_program

            program = admission_program(problem, excluded).program
            data, _, _ = program.get_problem_data(cvxpy.HIGHS)
            outcome = run_highs(_compiled(data), config, left_s())
            chosen = None
            if outcome.point is not None:
                accepted = outcome.point[data["bool_vars_idx"]] > 0.5
                chosen = tuple(int(j) for j in np.flatnonzero(accepted))
            dual = None if outcome.dual is None else -outcome.dual
            detail = {"nodes": float(outcome.nodes), "iterations": float(outcome.iterations)}
            return Attempt(outcome.termination, chosen, dual, detail)

        return solve_verified(problem, config, self._versions, attempt)


def _compiled(data: dict[str, Any]) -> Any:
    """A `highspy.Highs` that holds CVXPY's ``min c · z, A z = b`` on the first rows and ``A z <= b`` on the others."""
    import highspy

    matrix, upper = data["A"].tocsc(), np.asarray(data["b"], dtype=np.float64)
    rows, columns = matrix.shape
    lower = np.full(rows, -highspy.kHighsInf)
    lower[: data["dims"].zero] = upper[: data["dims"].zero]
    low = data["lower_bounds"] if data["lower_bounds"] is not None else np.full(columns, -highspy.kHighsInf)
    high = data["upper_bounds"] if data["upper_bounds"] is not None else np.full(columns, highspy.kHighsInf)
    low, high = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    booleans = data["bool_vars_idx"]
    low[booleans], high[booleans] = np.maximum(low[booleans], 0.0), np.minimum(high[booleans], 1.0)
    kinds = [highspy.HighsVarType.kContinuous] * columns
    for column in booleans:
        kinds[column] = highspy.HighsVarType.kInteger

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.asarray(data["c"], dtype=np.float64), low, high
    lp.row_lower_, lp.row_upper_ = lower, upper
    lp.integrality_ = kinds
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    highs = highspy.Highs()
    highs.silent()
    if highs.passModel(lp) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused the model that CVXPY compiled")
    return highs
