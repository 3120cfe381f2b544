"""Level 2 by HiGHS on arrays."""

import numpy as np

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.formulations.admission_highs import admission_arrays
from slo_opt.solvers.highs_run import maximisation, run_highs
from slo_opt.solvers.interface import AdmissionResult, SolverConfig
from slo_opt.solvers.verified import Attempt, solve_verified
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

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""

        def attempt(excluded: list[tuple[int, ...]], left_s: float | None) -> Attempt:
            arrays = admission_arrays(problem, excluded)
            highs = maximisation(
                arrays.cost, arrays.lower_bound, arrays.upper_bound, arrays.index, arrays.coefficient, arrays.upper
            )
            outcome = run_highs(highs, config, left_s)
            chosen = None
            if outcome.point is not None:
                chosen = tuple(int(j) for j in np.flatnonzero(outcome.point[: arrays.num_candidates] > 0.5))
            detail = {"nodes": float(outcome.nodes), "iterations": float(outcome.iterations)}
            return Attempt(outcome.termination, chosen, outcome.dual, detail)

        return solve_verified(problem, config, self._versions, attempt)
