"""Level 2 by Pyomo through HiGHS."""

import sys
from importlib import import_module
from typing import Any

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.solvers.highs_run import mip_options
from slo_opt.solvers.interface import AdmissionResult, SolverConfig, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.verified import Attempt, SecondsLeft, solve_verified
from slo_opt.solvers.versions import require


class PyomoAdmissionSolver:
    """HiGHS on `slo_opt.formulations.admission_pyomo`.

    Raises
    ------
    SolverNotAvailableError
        Pyomo or highspy is missing or a version that gives wrong answers.
    """

    name = "pyomo"

    def __init__(self) -> None:
        self._versions = require("pyomo", "highspy")
        import_module("slo_opt.formulations.admission_pyomo")  # here, so that it is not part of the time of a solve

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""
        from pyomo.contrib.solver.common.results import TerminationCondition
        from pyomo.contrib.solver.solvers.highs import Highs

        from slo_opt.formulations.admission_pyomo import admission_model, exclude

        class StoppableHighs(Highs):  # type: ignore[misc]
            def stop(self) -> None:
                if self._solver_model is not None:
                    self._solver_model.cancelSolve()

        terminations = {
            TerminationCondition.convergenceCriteriaSatisfied: Termination.OPTIMAL,
            TerminationCondition.provenInfeasible: Termination.INFEASIBLE,
            TerminationCondition.maxTimeLimit: Termination.TIME_LIMIT,
            TerminationCondition.iterationLimit: Termination.OTHER_LIMIT,
            TerminationCondition.interrupted: Termination.INTERRUPTED,
        }
        models: list[Any] = []

        def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
            if not models:
                models.append(admission_model(problem))
            model = models[0]
            for chosen in excluded[len(model.excluded) :]:
                exclude(model, chosen)
            time_limit_s = left_s()
            options = mip_options(config, None)
            highs = StoppableHighs()  # a new one: the clock of HiGHS runs on from solve to solve

            def run() -> Any:
                return highs.solve(
                    model,
                    time_limit=time_limit_s,
                    tee=sys.stderr if config.log else False,
                    solver_options=options,
                    load_solutions=False,
                    raise_exception_on_nonoptimal_result=False,
                )

            def tick(gone_s: float) -> None:
                if config.progress is not None:
                    config.progress("Pyomo and HiGHS branch and bound", gone_s / time_limit_s if time_limit_s else None)

            results, stopped = run_stoppable(run, highs.stop, tick)
            termination = terminations.get(results.termination_condition, Termination.ERROR)
            if stopped and termination is not Termination.OPTIMAL:
                termination = Termination.INTERRUPTED
            picked = None
            if results.incumbent_objective is not None:
                values = results.solution_loader.get_vars(list(model.accept.values()))
                picked = tuple(j for j in model.candidates if values[model.accept[j]] > 0.5)
            counted = "mip_node_count" in results.extra_info
            nodes = max(int(results.extra_info.mip_node_count), 0) if counted else 0
            return Attempt(termination, picked, results.objective_bound, {"nodes": float(nodes)})

        return solve_verified(problem, config, self._versions, attempt)
