"""The dynamic program for the admission plan: incumbent, prices, caps, and label-setting passes of growing width."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import zero_prices
from slo_opt.solvers.dp.incumbent import insertion, replay
from slo_opt.solvers.dp.labels import one_pass
from slo_opt.solvers.dp.prices import cap_prefixes, tighten, units
from slo_opt.solvers.dp.tables import tables

FIRST_STEPS = 30
MAX_STEPS = 200
MAX_ROUNDS = 3
FIRST_WIDTH = 16
GROWTH = 8


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
    num_labels : int
        Labels made.
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
    chosen = np.zeros(count, np.bool_)
    unpriced = value - quantum * (problem.use * units(problem)).sum(axis=1)
    best = insertion(problem, problem.usable, unpriced, False)
    best_value = (best * value).sum()
    if tighten(problem, prices, count, chosen, best_value, FIRST_STEPS) >= best_value + quantum:
        other = insertion(problem, chosen, prices.gain, True)
        other_value = (other * value).sum()
        if other_value > best_value:
            best, best_value = other, other_value
    bound = tighten(problem, prices, count, chosen, best_value, MAX_STEPS)
    for number in range(MAX_ROUNDS):
        if bound < best_value + quantum:
            break
        other = insertion(problem, chosen, prices.gain, True)
        other_value = (other * value).sum()
        if other_value > best_value:
            best, best_value = other, other_value
        if bound < best_value + quantum or number == MAX_ROUNDS - 1 or not cap_prefixes(problem, prices, chosen):
            break
        bound = min(bound, tighten(problem, prices, count, chosen, best_value, MAX_STEPS))
    made, width = 0, FIRST_WIDTH
    while bound >= best_value + quantum and made < max_labels:
        best_value, dropped, labels = one_pass(problem, prices, width, max_labels - made, best, best_value)
        made += labels
        bound = min(bound, max(dropped, float(best_value)))
        width *= GROWTH
    quanta = int(np.floor(bound / quantum))
    return best, best_value, max(best_value, quanta * quantum), made
