"""The dynamic program for the admission plan: incumbent, prices, and label-setting passes of growing width."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import Slack, maximiser, tighten, zero_prices
from slo_opt.solvers.dp.incumbent import NOTHING, insertion, shortage
from slo_opt.solvers.dp.labels import one_pass, room
from slo_opt.solvers.dp.tables import tables

MAX_STEPS = 100
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
    """Best set of candidates to accept; arrays as in `AdmissionProblem`."""
    count = len(tier)
    problem = tables(
        tier, work_ps, load_ppm, blocks, value, mandatory, length_us, supply_ps, headroom_ppm, free_blocks
    )
    if shortage(problem, mandatory, count)[1] != NOTHING:
        return mandatory.copy(), -1, -1, 0
    if count == 0:
        return mandatory.copy(), 0, 0, 0
    prices = zero_prices(problem)
    pieces = work_ps.shape[0]
    slack = Slack(
        np.zeros((pieces, count + 1)),
        np.zeros((pieces, count + 1)),
        np.zeros(count + 1),
        np.zeros(count, np.bool_),
    )
    best = insertion(problem, problem.usable, prices.gain, False)
    best_value = (best * value).sum()
    bound = tighten(problem, prices, slack, best_value, MAX_STEPS)
    if bound >= best_value + problem.quantum:
        maximiser(problem, prices, slack)
        other = insertion(problem, slack.chosen, prices.gain, True)
        other_value = (other * value).sum()
        if other_value > best_value:
            best, best_value = other, other_value
    made = 0
    width = FIRST_WIDTH
    while bound >= best_value + problem.quantum and made < max_labels:
        space = room(problem, width, min(max_labels - made, width * count) + 2 * width + 2)
        best_value, dropped, labels = one_pass(problem, prices, space, width, max_labels - made, best, best_value)
        made += labels
        bound = min(bound, max(dropped, float(best_value)))
        width *= GROWTH
    quanta = int(np.floor(bound / problem.quantum))
    return best, best_value, max(best_value, quanta * problem.quantum), made
