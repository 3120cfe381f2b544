"""A good feasible set fast: insertion by deadline, and where something runs short the costliest is taken out.

As J. M. Moore's algorithm for the number of late jobs (Management Science 15(1), 1968), which is exact for one machine,
unit values and no decodes.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.bounds import FloatArray
from slo_opt.solvers.dp.tables import Tables

NOTHING = -1  # no resource runs short
MEMORY = -2
MAX_TRIES = 24  # candidates tried at the end


@njit(cache=True)
def shortage(problem: Tables, chosen: NDArray[np.bool_], end: int) -> tuple[int, int]:
    """Where the chosen among the first `end` candidates are infeasible, and what runs short there.

    Returns
    -------
    candidate, resource : int
        Resource: `NOTHING`, `MEMORY`, ``2 l`` for compute and ``2 l + 1`` for headroom of piece l.
    """
    pieces = problem.work_ps.shape[0]
    loads = np.zeros(pieces, np.int64)
    budgets = np.zeros(pieces, np.int64)
    tightest = problem.supply_ps.shape[2] - 1
    held = 0
    empty = True
    for i in range(end):
        if empty:
            if not chosen[i]:
                continue
            budgets[:] = problem.idle_budget_ps[:, i]
        else:
            for piece in range(pieces):
                budgets[piece] += problem.supply_ps[piece, i, tightest] - problem.length_us[i] * loads[piece]
        if not chosen[i]:
            continue
        empty = False
        tightest = min(tightest, problem.tier[i])
        held += problem.blocks[i]
        if held > problem.least_free_blocks[i]:
            return i, MEMORY
        for piece in range(pieces):
            budgets[piece] -= problem.work_ps[piece, i]
            loads[piece] += problem.load_ppm[piece, i]
            if budgets[piece] < 0:
                return i, 2 * piece
            if loads[piece] > problem.least_headroom_ppm[piece, i + 1, tightest]:
                return i, 2 * piece + 1
    return end, NOTHING


@njit(cache=True)
def _cost(problem: Tables, start_us: NDArray[np.int64], j: int, i: int, resource: int) -> float:
    """What candidate `j` takes of the resource up to the deadline of candidate `i`, for each unit of value."""
    if resource == MEMORY:
        used = problem.blocks[j]
    elif resource % 2:
        used = problem.load_ppm[resource // 2, j]
    else:
        used = problem.work_ps[resource // 2, j] + problem.load_ppm[resource // 2, j] * (start_us[i] - start_us[j])
    return used / problem.value[j]


@njit(cache=True)
def insertion(problem: Tables, wanted: NDArray[np.bool_], gain: FloatArray, priced: bool) -> NDArray[np.bool_]:
    """A feasible set of wanted candidates; the mandatory ones alone must be feasible.

    Parameters
    ----------
    wanted : (N,) bool array
        Candidates to insert, by deadline.
    gain : (N,) float array
        Worth of each, for `priced`.
    priced : bool
        Take out the candidate of least gain; otherwise the one that uses most of what runs short for its value. At the
        end try the candidates left out, by gain.

    Returns
    -------
    (N,) bool array
    """
    count = len(problem.tier)
    start_us = np.cumsum(problem.length_us)
    chosen = problem.mandatory.copy()
    last_mandatory = -1
    for i in range(count):
        if chosen[i]:
            last_mandatory = i
    for i in range(count):
        if chosen[i] or not wanted[i] or not problem.usable[i]:
            continue
        chosen[i] = True
        while True:
            place, resource = shortage(problem, chosen, max(i, last_mandatory) + 1)
            if resource == NOTHING:
                break
            worst, most = -1, -np.inf
            for j in range(min(i, place) + 1):
                if chosen[j] and not problem.mandatory[j]:
                    cost = -gain[j] if priced else _cost(problem, start_us, j, place, resource)
                    if cost > most:
                        worst, most = j, cost
            chosen[worst] = False
    if priced:
        order = np.argsort(-gain)
        tries = 0
        for j in order:
            if not chosen[j] and problem.usable[j]:
                chosen[j] = True
                if shortage(problem, chosen, count)[1] != NOTHING:
                    chosen[j] = False
                    tries += 1
                    if tries == MAX_TRIES:
                        break
    return chosen
