"""A good feasible set fast: insertion by deadline, and where something runs short the costliest is taken out.

As J. M. Moore's algorithm for the number of late jobs (Management Science 15(1), 1968), which is exact for one machine,
unit values and no decodes.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import FloatArray
from slo_opt.solvers.dp.tables import Tables

NOTHING = -1  # no resource runs short
MAX_FAILURES = 24  # candidates tried in vain at the end


@njit(cache=True)
def enter(problem: Tables, state: IntArray, i: int, tightest: int) -> None:
    """Bring the budgets of a set that is not empty from the deadline before to that of candidate `i`."""
    pieces = problem.supply_ps.shape[1]
    for piece in range(pieces):
        state[piece] += problem.supply_ps[i, piece, tightest] - problem.length_us[i] * state[pieces + piece]


@njit(cache=True)
def take(problem: Tables, state: IntArray, i: int, tightest: int) -> int:
    """Accept candidate `i` at its deadline; `tightest` includes it. Returns the resource that runs short, or `NOTHING`."""
    pieces = problem.supply_ps.shape[1]
    use = problem.use[i]
    short = NOTHING
    for piece in range(pieces):
        state[piece] -= use[piece]
        state[pieces + piece] += use[pieces + piece]
        if state[piece] < 0:
            short = piece
        elif state[pieces + piece] > problem.headroom_ppm[i + 1, piece, tightest]:
            short = pieces + piece
    state[2 * pieces] += use[2 * pieces]
    return 2 * pieces if state[2 * pieces] > problem.free_blocks[i] else short


@njit(cache=True)
def shortage(problem: Tables, chosen: NDArray[np.bool_], end: int, state: IntArray) -> tuple[int, int, int]:
    """Where the chosen among the first `end` candidates are infeasible, and what runs short there.

    Returns
    -------
    candidate, resource, tightest : int
        Resource: a column of `Tables`, or `NOTHING`. `state` and the tightest tier are those at the last deadline.
    """
    tiers = problem.supply_ps.shape[2] - 1
    tightest = tiers
    state[:] = 0
    for i in range(end):
        if tightest < tiers:
            enter(problem, state, i, tightest)
        elif chosen[i]:
            state[: problem.idle_ps.shape[1]] = problem.idle_ps[i]
        if chosen[i]:
            tightest = min(tightest, problem.tier[i])
            short = take(problem, state, i, tightest)
            if short != NOTHING:
                return i, short, tightest
    return end, NOTHING, tightest


@njit(cache=True)
def _cost(problem: Tables, start_us: IntArray, j: int, i: int, resource: int) -> float:
    """What candidate `j` takes of the resource up to the deadline of candidate `i`, for each unit of value."""
    pieces = problem.supply_ps.shape[1]
    used = problem.use[j, resource]
    if resource < pieces:
        used += problem.use[j, pieces + resource] * (start_us[i] - start_us[j])
    return used / problem.use[j, 2 * pieces + 1]


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
    count, resources = problem.use.shape
    start_us = np.cumsum(problem.length_us)
    chosen = problem.mandatory.copy()
    state = np.zeros(resources, np.int64)
    last_mandatory = -1
    for i in range(count):
        if chosen[i]:
            last_mandatory = i
    tightest = tiers = problem.supply_ps.shape[2] - 1
    for i in range(count):
        if tightest < tiers:
            enter(problem, state, i, tightest)
        else:
            state[: problem.idle_ps.shape[1]] = problem.idle_ps[i]
        if not (chosen[i] or (wanted[i] and problem.usable[i])):
            continue
        chosen[i] = True
        tightest = min(tightest, problem.tier[i])
        resource, place = take(problem, state, i, tightest), i
        if resource == NOTHING and i >= last_mandatory:
            continue
        while True:
            place, resource, tightest = shortage(problem, chosen, max(i, last_mandatory) + 1, state)
            if resource == NOTHING:
                break
            worst, most = -1, -np.inf
            for j in range(min(i, place) + 1):
                if chosen[j] and not problem.mandatory[j]:
                    cost = -gain[j] if priced else _cost(problem, start_us, j, place, resource)
                    if cost > most:
                        worst, most = j, cost
            chosen[worst] = False
        if i < last_mandatory:
            tightest = shortage(problem, chosen, i + 1, state)[2]
    if priced:
        failures = 0
        for j in np.argsort(-gain):
            if not chosen[j] and problem.usable[j]:
                chosen[j] = True
                if shortage(problem, chosen, count, state)[1] != NOTHING:
                    chosen[j] = False
                    failures += 1
                    if failures == MAX_FAILURES:
                        break
    return chosen
