"""The DP behind the solver interface, and its direct entry for a live scheduler."""

import time

import numba
import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.solvers.dp.kernel import solve_arrays
from slo_opt.solvers.interface import AdmissionResult, ObjectiveBounds, SolverConfig, SolveStats, Termination

MAX_EFFORT = 20_000  # keeps the time at 500 candidates below about 10 ms


def plan(problem: AdmissionProblem, max_effort: int = MAX_EFFORT) -> tuple[NDArray[np.bool_], int, int, int]:
    """Solve without objects around it: for callers that count microseconds.

    Parameters
    ----------
    problem : AdmissionProblem
        ``N`` candidates.
    max_effort : int
        Effort at most: labels, and steps of the prices counted in labels. The work done, and so the result, does not
        depend on the clock.

    Returns
    -------
    accepted : (N,) bool array
        Best set found; the mandatory set where no set is feasible.
    value, bound : int
        Of the set, and a proved upper bound on the value of any feasible set; -1 where no set is feasible.
    effort : int
        Spent, in labels.
    """
    return solve_arrays(
        problem.tier,
        problem.work_ps,
        problem.load_ppm,
        problem.blocks,
        problem.value,
        problem.mandatory,
        problem.length_us,
        problem.supply_ps,
        problem.headroom_ppm,
        problem.free_blocks,
        max_effort,
    )


class DpSolver:
    """Label-setting DP (see `slo_opt.solvers.dp.kernel`).

    Exact unless it runs out of effort; then the best set found comes with a proved bound. Only between growing
    budgets does it look at the clock, so that without a time limit it is deterministic.

    Parameters
    ----------
    max_effort : int
        Effort without a time limit, in labels.
    """

    name = "dp"

    def __init__(self, max_effort: int = MAX_EFFORT) -> None:
        self._max_effort = max_effort

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept.

        With `time_limit_s` the effort grows fourfold until the set is proved within `relative_gap` or the next
        budget would overrun the limit.
        """
        began = time.perf_counter()
        budget = self._max_effort
        while True:
            started = time.perf_counter()
            accepted, value, bound, effort = plan(problem, budget)
            took_s = time.perf_counter() - started
            left_s = 0.0 if config.time_limit_s is None else config.time_limit_s - (time.perf_counter() - began)
            if bound - value <= config.relative_gap * max(1, value) or 5 * took_s > left_s:
                break
            budget *= 4
        stats = SolveStats(
            time.perf_counter() - began,
            {"slo-opt dp": "1", "numba": numba.__version__},
            {"effort_labels": float(effort), "max_effort": float(budget)},
        )
        if value < 0:
            return AdmissionResult(Termination.INFEASIBLE, None, ObjectiveBounds(), stats)
        chosen = tuple(int(j) for j in np.flatnonzero(accepted))
        fault = problem.check(chosen)
        if fault is not None or problem.total_value(chosen) != value:
            raise AssertionError(f"the DP returned a set that fails the check ({fault}); please report it")
        if bound - value <= config.relative_gap * max(1, value):
            termination = Termination.OPTIMAL
        else:
            termination = Termination.OTHER_LIMIT if config.time_limit_s is None else Termination.TIME_LIMIT
        return AdmissionResult(termination, chosen, ObjectiveBounds(float(value), float(bound)), stats)
