"""Level 2 by CP-SAT."""

from importlib import import_module

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.solvers.cpsat_run import set_parameters
from slo_opt.solvers.interface import AdmissionResult, SolverConfig, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.verified import Attempt, SecondsLeft, solve_verified
from slo_opt.solvers.versions import require


class CpSatAdmissionSolver:
    """CP-SAT on `slo_opt.formulations.admission_cpsat`: integers throughout, so no tolerance is involved.

    Raises
    ------
    SolverNotAvailableError
        OR-Tools is missing or a version that cannot be used.
    """

    name = "cpsat"

    def __init__(self) -> None:
        self._versions = require("ortools")
        import_module("slo_opt.formulations.admission_cpsat")  # here, so that it is not part of the time of a solve

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""
        from ortools.sat.python import cp_model

        from slo_opt.formulations.admission_cpsat import admission_cp_model

        def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
            if excluded:  # it returned a set that is not feasible, so nothing it says can be relied on
                return Attempt(Termination.ERROR, None, None)
            model, accept = admission_cp_model(problem)
            solver = cp_model.CpSolver()
            time_limit_s = left_s()
            set_parameters(solver, config, time_limit_s)
            solver.parameters.cp_model_presolve = False  # three times as fast on these models without

            def tick(gone_s: float) -> None:
                if config.progress is not None:
                    config.progress("CP-SAT search", gone_s / time_limit_s if time_limit_s else None)

            status, stopped = run_stoppable(lambda: solver.solve(model), solver.stop_search, tick)
            detail = {"branches": float(solver.num_branches), "conflicts": float(solver.num_conflicts)}
            if status == cp_model.INFEASIBLE:
                return Attempt(Termination.INFEASIBLE, None, None, detail)
            if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN):
                return Attempt(Termination.ERROR, None, None, detail)
            termination = Termination.OPTIMAL
            if status != cp_model.OPTIMAL:
                termination = Termination.INTERRUPTED if stopped else Termination.TIME_LIMIT
            if status == cp_model.UNKNOWN:
                return Attempt(termination, None, None, detail)
            chosen = tuple(j for j in range(len(accept)) if solver.boolean_value(accept[j]))
            return Attempt(termination, chosen, float(solver.best_objective_bound), detail)

        return solve_verified(problem, config, self._versions, attempt)
