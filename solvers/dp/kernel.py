"""The dynamic program for the admission plan: incumbent, prices, caps, fixing, then labels within branch and bound."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import zero_prices
from slo_opt.solvers.dp.branching import fix, restrict, search
from slo_opt.solvers.dp.incumbent import insertion, replay
from slo_opt.solvers.dp.prices import new_maximum, tighten, units
from slo_opt.solvers.dp.tables import reduced, tables

FIRST_STEPS = 30
MAX_STEPS = 80


@njit(cache=True)
def solve_arrays(
    tier: IntArray,
    work_ps: IntArray,
    load_ppm: IntArray,
    blocks: IntArray,
    value: IntArray,
    mandatory: NDArray[np.bool_],
    length_us: IntArray,
    supply_ps: IntArray,
    headroom_ppm: IntArray,
    free_blocks: IntArray,
    max_labels: int,
) -> tuple[NDArray[np.bool_], int, int, int]:
    """Best set of candidates to accept; arrays as in `AdmissionProblem`.

    Returns
    -------
    accepted : (N,) bool array
        Best set found.
    value : int
        Its value; -1 if no set is feasible.
    bound : int
        Proved upper bound on the value of any feasible set.
    effort : int
        Labels made, and work of the search counted in labels.
    """
    count = len(tier)
    problem = tables(tier, work_ps, load_ppm, blocks, value, mandatory, length_us, supply_ps, headroom_ppm, free_blocks)
    state = np.zeros(problem.use.shape[1], np.int64)
    if not replay(problem, mandatory, count, state)[0]:
        return mandatory.copy(), -1, -1, 0
    if count == 0:
        return mandatory.copy(), 0, 0, 0
    quantum = problem.quantum
    prices = zero_prices(problem)
    maximum = new_maximum(problem)
    unpriced = value - quantum * (problem.use * units(problem)).sum(axis=1)
    best = insertion(problem, problem.usable, unpriced, False)
    best_value = (best * value).sum()
    bound = tighten(problem, prices, count, maximum, best_value, FIRST_STEPS)
    if bound >= best_value + quantum:
        other = insertion(problem, maximum.chosen, prices.gain, True)
        other_value = (other * value).sum()
        if other_value > best_value:
            best, best_value = other, other_value
        bound = min(bound, tighten(problem, prices, count, maximum, best_value, MAX_STEPS))
    if bound >= best_value + quantum:
        other = insertion(problem, maximum.chosen, prices.gain, True)
        other_value = (other * value).sum()
        if other_value > best_value:
            best, best_value = other, other_value
    effort = 0
    if bound >= best_value + quantum:
        fix(problem, prices, best_value + quantum)
        keep = np.flatnonzero(problem.usable)
        core = reduced(problem, keep)
        core_best = np.zeros(len(keep), np.bool_)
        found, bound, effort = search(core, restrict(prices, core, keep), core_best, best_value, bound, max_labels)
        if found > best_value:
            best[:] = False
            best[keep] = core_best
            best_value = found
    quanta = int(np.floor(bound / quantum))
    return best, best_value, max(best_value, quanta * quantum), effort
