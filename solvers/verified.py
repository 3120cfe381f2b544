"""The loop around an inexact backend: every set it returns is checked in integers, and forbidden if it fails.

A floating-point solver may return a set that breaks a row by less than its tolerance. Costs are not negative, so every
superset breaks it too: both are cut off and the model is solved again, until a set passes or no better one can exist.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.solvers.interface import AdmissionResult, ObjectiveBounds, SolverConfig, SolveStats, Termination

MAX_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one run of a backend says, unverified.

    Parameters
    ----------
    termination : Termination
        Why it stopped.
    chosen : tuple of int or None
        The set it would accept.
    dual : float or None
        Its proved upper bound, None if it proved none.
    detail : dict of str to float
        Counts to add up over the rounds.
    """

    termination: Termination
    chosen: tuple[int, ...] | None
    dual: float | None
    detail: dict[str, float] = field(default_factory=dict)


SecondsLeft = Callable[[], float | None]
AttemptRun = Callable[[list[tuple[int, ...]], SecondsLeft], Attempt]


def solve_verified(
    problem: AdmissionProblem, config: SolverConfig, versions: dict[str, str], attempt: AttemptRun
) -> AdmissionResult:
    """Best set that passes `AdmissionProblem.check`, and what is proved.

    Parameters
    ----------
    problem : AdmissionProblem
        What to solve.
    config : SolverConfig
        Time limit and gap; the limit covers all rounds.
    versions : dict of str to str
        For the statistics.
    attempt : callable
        Solves once, given the sets to exclude with their supersets, and a function that says how many seconds are left
        (None: no limit), to be asked once the model is built.

    Returns
    -------
    AdmissionResult
        With `relative_gap` > 0, ``OPTIMAL`` means optimal within that gap.
    """
    began = time.perf_counter()
    best = _start(problem)
    dual = float(problem.value.sum())
    detail: dict[str, float] = {"rounds": 0.0}
    excluded: list[tuple[int, ...]] = []

    def left_s() -> float | None:
        if config.time_limit_s is None:
            return None
        return max(0.0, config.time_limit_s - (time.perf_counter() - began))

    def result(termination: Termination) -> AdmissionResult:
        if termination is Termination.INFEASIBLE:
            bounds = ObjectiveBounds()
        else:
            primal = None if best is None else float(problem.total_value(best))
            bounds = ObjectiveBounds(primal, dual if primal is None else max(dual, primal))
        stats = SolveStats(time.perf_counter() - began, versions, detail)
        return AdmissionResult(termination, best, bounds, stats)

    while True:
        if left_s() == 0.0:
            return result(Termination.TIME_LIMIT)
        try:
            said = attempt(excluded, left_s)
        except KeyboardInterrupt:  # while the model was built, or for the second time
            return result(Termination.INTERRUPTED)
        detail["rounds"] += 1
        for name, amount in said.detail.items():
            detail[name] = detail.get(name, 0.0) + amount
        if said.termination is Termination.INFEASIBLE:
            if best is None:
                return result(Termination.INFEASIBLE)
            if not excluded:
                return result(Termination.ERROR)  # the mandatory set alone is feasible
            dual = float(problem.total_value(best))  # all that is better was excluded
            return result(Termination.OPTIMAL)
        if said.dual is not None and math.isfinite(said.dual):
            dual = min(dual, _floor(said.dual))
        fails = said.chosen is not None and problem.check(said.chosen) is not None
        if said.chosen is not None and not fails:
            value = problem.total_value(said.chosen)
            if best is None or value > problem.total_value(best):
                best = tuple(sorted(said.chosen))
        if best is not None and _within(problem.total_value(best), dual, config.relative_gap):
            return result(Termination.OPTIMAL)
        if said.termination is not Termination.OPTIMAL:
            return result(said.termination)
        if not fails or len(excluded) == MAX_ROUNDS:
            return result(Termination.OTHER_LIMIT)  # tolerances of the solver hide what is left of the gap
        assert said.chosen is not None
        excluded.append(said.chosen)


def _start(problem: AdmissionProblem) -> tuple[int, ...] | None:
    """The mandatory candidates alone, where they are feasible: then nothing better found is still an answer."""
    mandatory = tuple(j for j in range(problem.num_candidates) if problem.mandatory[j])
    return mandatory if problem.check(mandatory) is None else None


def _floor(dual: float) -> float:
    """Bound on an integer objective from a bound in floats, rounded to the safe side."""
    return float(math.floor(dual + 1e-5 + 1e-10 * abs(dual)))


def _within(primal: int, dual: float, relative_gap: float) -> bool:
    return dual - primal <= relative_gap * max(1, abs(primal))
