"""The dynamic program for the admission plan: incumbent, prices, fixing, then passes of labels of growing width."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import derive, rounding, zero_prices
from slo_opt.solvers.dp.fixing import fix, restrict
from slo_opt.solvers.dp.incumbent import insertion, replay
from slo_opt.solvers.dp.labels import one_pass
from slo_opt.solvers.dp.prices import tighten, units
from slo_opt.solvers.dp.tables import reduced, tables

STEPS = 30  # of the prices in a round of the whole problem
ROUNDS = 12  # of these at most
PROGRESS = 0.1  # quanta by which a round narrows the gap for another to follow; the second always does
STEPS_SHARE = 8  # a round has at least one step for so many candidates
CORE_STEPS = 60  # of the prices before a pass of labels
STEPS_PER_LABEL = 4  # candidates that a step of the prices passes in the time of a label
FIRST_WIDTH = 64
WIDER = 4  # factor from pass to pass
TOLERANCE = 0.001  # quanta
EXACT_WIDTH = 1_000  # from which labels are absorbed for want of room only


@njit(cache=True, nogil=True)
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
    max_effort: int,
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
    unpriced = value - quantum * (problem.use * units(problem)).sum(axis=1)
    best = insertion(problem, problem.usable, unpriced, False)
    best_value = (best * value).sum()
    prices = zero_prices(problem)
    keep = np.arange(count)
    bound, effort, width, number = np.inf, 0, 0, 0
    while True:
        count = len(keep)
        gap = bound - best_value
        chosen = np.zeros(count, np.bool_)
        steps = max(CORE_STEPS if width else STEPS, count // STEPS_SHARE)
        bound = min(bound, tighten(problem, prices, chosen, best_value, steps))
        effort += steps * count // STEPS_PER_LABEL
        if bound < best_value + quantum:
            break
        if not replay(problem, problem.mandatory, count, state)[0]:
            bound = float(best_value)  # a better set would accept all that fixing made mandatory
            break
        other = insertion(problem, chosen, prices.gain, True)
        found = (other * problem.use[:, problem.use.shape[1] - 1]).sum()
        if found > best_value:
            best[:] = False
            best[keep] = other
            best_value = found
            if bound < best_value + quantum:
                break
        number += 1
        if number < 2 or (number < ROUNDS and width == 0 and gap - (bound - best_value) > PROGRESS * quantum):
            continue
        width = min(width * WIDER, max(FIRST_WIDTH, max_effort)) if width else FIRST_WIDTH
        tolerance = TOLERANCE * quantum if width < EXACT_WIDTH else 0.0
        fix(problem, prices, best_value + quantum)
        kept = np.flatnonzero(problem.usable)
        problem = reduced(problem, kept)
        prices = restrict(prices, problem, kept)
        keep = keep[kept]
        derive(problem, prices)
        rounding(problem, prices)
        other = np.zeros(len(keep), np.bool_)
        found, dropped, labels = one_pass(
            problem, prices, width, max(1, max_effort - effort), other, best_value, tolerance
        )
        effort += labels
        if found > best_value:
            best[:] = False
            best[keep] = other
            best_value = found
        bound = min(bound, max(dropped, float(best_value)))
        if bound < best_value + quantum or effort >= max_effort:
            break
    quanta = int(np.floor(bound / quantum))
    return best, best_value, max(best_value, quanta * quantum), effort
