"""A good feasible set fast: insertion by deadline, and where something runs short the least worthy is taken out.

As J. M. Moore's algorithm for the number of late jobs (Management Science 15(1), 1968), which is exact for one machine,
unit values and no decodes. Worth is what the prices of `prices.py` say, so the set gets better as they do.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import FloatArray
from slo_opt.solvers.dp.tables import Tables

NOBODY = -1
MAX_FAILURES = 8  # candidates tried in vain at the end


@njit(cache=True)
def enter(problem: Tables, state: IntArray, i: int, tightest: int) -> None:
    """Bring the budgets of a set that is not empty from the deadline before to that of candidate `i`."""
    pieces = problem.supply_ps.shape[1]
    for piece in range(pieces):
        state[piece] += problem.supply_ps[i, piece, tightest] - problem.length_us[i] * state[pieces + piece]


@njit(cache=True)
def take(problem: Tables, state: IntArray, i: int) -> None:
    """Accept candidate `i` at its deadline."""
    pieces = problem.supply_ps.shape[1]
    use = problem.use[i]
    for r in range(pieces):
        state[r] -= use[r]
    for r in range(pieces, len(use)):
        state[r] += use[r]


@njit(cache=True)
def fits(problem: Tables, state: IntArray, i: int, tightest: int) -> bool:
    """Whether a set that has just accepted candidate `i` is within all limits."""
    pieces = problem.supply_ps.shape[1]
    if state[2 * pieces] > problem.free_blocks[i]:
        return False
    for piece in range(pieces):
        if state[piece] < 0 or state[pieces + piece] > problem.headroom_ppm[i + 1, piece, tightest]:
            return False
    return True


@njit(cache=True)
def replay(problem: Tables, chosen: NDArray[np.bool_], end: int, state: IntArray) -> tuple[bool, int]:
    """Whether the chosen among the first `end` candidates are feasible, and their tightest tier.

    `state`, ``(R,)``, is filled with what they leave and hold at the last deadline, if they are feasible.
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
            take(problem, state, i)
            if not fits(problem, state, i, tightest):
                return False, tightest
    return True, tightest


@njit(cache=True)
def insertion(problem: Tables, wanted: NDArray[np.bool_], gain: FloatArray, fill: bool) -> NDArray[np.bool_]:
    """A feasible set of wanted candidates; the mandatory ones where they alone are infeasible.

    Parameters
    ----------
    wanted : (N,) bool array
        Candidates to insert, by deadline.
    gain : (N,) float array
        Worth of each: the least is taken out.
    fill : bool
        At the end try the candidates left out, by gain.

    Returns
    -------
    (N,) bool array
    """
    count, resources = problem.use.shape
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    now_us = np.cumsum(problem.length_us)
    chosen = problem.mandatory.copy()
    last_mandatory = -1
    for i in range(count):
        if chosen[i]:
            last_mandatory = i
    state, scratch = np.zeros(resources, np.int64), np.zeros(resources, np.int64)
    in_tier = np.zeros(tiers + 1, np.int64)
    tightest = tiers
    for i in range(count):
        if tightest < tiers:
            enter(problem, state, i, tightest)
        else:
            state[:] = 0
            state[:pieces] = problem.idle_ps[i]
        if not (chosen[i] or (wanted[i] and problem.usable[i])):
            continue
        chosen[i] = True
        take(problem, state, i)
        in_tier[problem.tier[i]] += 1
        tightest = min(tightest, problem.tier[i])
        while True:
            if i >= last_mandatory:
                if fits(problem, state, i, tightest):
                    break
            elif replay(problem, chosen, last_mandatory + 1, scratch)[0]:
                break
            worst, least = NOBODY, np.inf
            for j in range(i + 1):
                if chosen[j] and gain[j] < least and not problem.mandatory[j]:
                    worst, least = j, gain[j]
            if worst == NOBODY:
                return problem.mandatory.copy()
            chosen[worst] = False
            own = problem.tier[worst]
            in_tier[own] -= 1
            if own == tightest and in_tier[own] == 0:
                tightest = replay(problem, chosen, i + 1, state)[1]
                continue
            use = problem.use[worst]
            for piece in range(pieces):
                state[piece] += use[piece] + use[pieces + piece] * (now_us[i] - now_us[worst])
            for r in range(pieces, resources):
                state[r] -= use[r]
    if fill:
        failures = 0
        for j in np.argsort(-gain):
            if not chosen[j] and problem.usable[j]:
                chosen[j] = True
                if not replay(problem, chosen, count, state)[0]:
                    chosen[j] = False
                    failures += 1
                    if failures == MAX_FAILURES:
                        break
    return chosen
