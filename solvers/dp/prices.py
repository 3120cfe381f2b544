"""Prices that make the Lagrangian bound tight, without a linear program: subgradient steps, and caps on prefixes.

Steps are Polyak's with a target just above the incumbent, along subgradients deflected so as not to undo the step
before. Any non-negative prices give a valid bound; the better ones certify the incumbent at once.

Where several limits bind, the relaxation rounds each of them up: it accepts the last fraction of a candidate at each.
Caps take that away: an integer bound on the value of a *prefix* of the candidates, from the prefix's own relaxation,
holds for the whole problem and gets a price like any other limit (a Chvátal-Gomory cut in the dual).

References
----------
B. T. Polyak, Minimization of unsmooth functionals, USSR Comput. Math. 9(3), 1969. P. Camerini, L. Fratta, F. Maffioli,
On improving relaxation methods by modified gradient techniques, Math. Programming Study 3, 1975. V. Chvátal, Edmonds
polytopes and a hierarchy of combinatorial problems, Discrete Math. 4, 1973.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.bounds import FloatArray, Prices, derive, maximiser, zero_prices
from slo_opt.solvers.dp.tables import Tables

PATIENCE = 6  # steps without progress before the step length is halved
PROGRESS = 0.002  # of a quantum of value
SHORTEST = 0.01  # step length at which prices count as settled
UNKNOWN = -1
MAX_CAPS = 12  # prefixes capped in a round
CAP_STEPS = 30
SMOOTHING = 0.1  # weight of the latest step in the shares


class Maximum(NamedTuple):
    """Sets that attain the bound along the steps: together they tell what the relaxation accepts by halves.

    Parameters
    ----------
    chosen : (N,) bool array
        The latest.
    share : (N,) float array
        Share of the latest steps that chose a candidate, by exponential smoothing.
    tier_share : (K + 1,) float array
        Share of the latest steps by tightest tier.
    """

    chosen: NDArray[np.bool_]
    share: FloatArray
    tier_share: FloatArray


@njit(cache=True)
def new_maximum(problem: Tables) -> Maximum:
    """Nothing chosen yet."""
    count = len(problem.tier)
    return Maximum(np.zeros(count, np.bool_), np.zeros(count), np.zeros(problem.supply_ps.shape[2]))


@njit(cache=True)
def units(problem: Tables) -> FloatArray:
    """Scale of each resource, ``(R,)``: a mean candidate takes about one."""
    count, resources = problem.use.shape
    unit = np.ones(resources)
    for i in range(count):
        for r in range(resources):
            unit[r] += problem.use[i, r]
    return count / unit


@njit(cache=True)
def tighten(problem: Tables, prices: Prices, end: int, maximum: Maximum, incumbent: int, max_steps: int) -> float:
    """Improve the prices of the first `end` candidates until the incumbent is proved optimal, or progress ends.

    Parameters
    ----------
    prices : Prices
        Changed in place; the best prices met, and what follows from them, are left in it.
    end : int
        Length of the prefix, N for the whole problem.
    maximum : Maximum
        Filled with the last maximiser and the shares of steps.
    incumbent : int
        Value of the best set known, or `UNKNOWN`: then lower the bound as far as it goes.
    max_steps : int
        Most steps.

    Returns
    -------
    float
        Valid upper bound on the value of any feasible set of the prefix.
    """
    resources = problem.use.shape[1]
    price = prices.price
    best = price[: end + 1].copy()
    left = np.zeros((end + 1, resources))
    direction = np.zeros((end + 1, resources))
    unit = units(problem)
    quantum = problem.quantum
    least, length, idle_steps = np.inf, 1.0, 0
    for _ in range(max_steps):
        bound = derive(problem, prices, end)
        idle_steps = 0 if bound < least - PROGRESS * quantum else idle_steps + 1
        if idle_steps == PATIENCE:
            length *= 0.5
            idle_steps = 0
        if bound < least:
            least = bound
            best[:] = price[: end + 1]
        if length < SHORTEST or (incumbent != UNKNOWN and least < incumbent + quantum):
            break
        tightest = maximiser(problem, prices, end, left, maximum.chosen)
        maximum.share[:] += SMOOTHING * (maximum.chosen - maximum.share)
        maximum.tier_share[:] *= 1.0 - SMOOTHING
        maximum.tier_share[tightest] += SMOOTHING
        own, mixed, before = 0.0, 0.0, 0.0
        for i in range(end + 1):
            for r in range(resources):
                slack = left[i, r] * unit[r] if left[i, r] < 0.0 or price[i, r] > 0.0 else 0.0
                left[i, r] = slack
                own += slack * slack
                mixed += slack * direction[i, r]
                before += direction[i, r] * direction[i, r]
        deflection = -mixed / before if mixed < 0.0 else 0.0
        norm = own + deflection * (2.0 * mixed + deflection * before)
        if norm <= 0.0:
            break
        target = least - 0.75 * quantum if incumbent == UNKNOWN else incumbent + 0.5 * quantum
        step = length * (bound - target) / norm
        for i in range(end + 1):
            for r in range(resources):
                direction[i, r] = left[i, r] + deflection * direction[i, r]
                price[i, r] = max(0.0, price[i, r] - step * unit[r] * direction[i, r])
    price[: end + 1] = best
    return derive(problem, prices, end)


@njit(cache=True)
def cap_prefixes(problem: Tables, prices: Prices) -> bool:
    """Lower the caps of prefixes that end where limits have a price; returns whether any was lowered.

    Prefixes are taken in order, so that each builds on the caps before it. A prefix starts from the prices of the whole
    problem, with the worth of all that lies behind its end moved to its end.
    """
    count, resources = problem.use.shape
    pieces = problem.supply_ps.shape[1]
    unit = units(problem)
    weight = np.zeros(count)
    for i in range(count):
        for r in range(resources - 1):
            weight[i] += prices.price[i, r] / unit[r]
    total = weight.sum()
    own = zero_prices(problem)
    maximum = new_maximum(problem)
    lowered = False
    gathered, peak, heaviest = 0.0, 0, -1.0
    for i in range(count):
        if weight[i] > heaviest:
            peak, heaviest = i, weight[i]
        gathered += weight[i]
        if gathered * MAX_CAPS < total or gathered == 0.0 or peak == count - 1:
            continue
        end = peak + 1
        own.price[:end] = prices.price[:end]
        own.price[end] = 0.0
        own.price[peak] = prices.worth[peak]
        for piece in range(pieces):
            own.price[end, pieces + piece] = prices.worth[end, pieces + piece]
            own.price[peak, pieces + piece] = prices.price[peak, pieces + piece]
        bound = tighten(problem, own, end, maximum, UNKNOWN, CAP_STEPS)
        cap = np.int64(np.floor(bound / problem.quantum)) * problem.quantum
        if cap < problem.value_cap[peak]:
            lowered = True
            _lower(problem, peak, cap)
        gathered, heaviest = 0.0, -1.0
    return lowered


@njit(cache=True)
def _lower(problem: Tables, place: int, cap: int) -> None:
    """Set a cap; a shorter prefix is worth no more, a longer one no more than the cap and its further candidates."""
    caps = problem.value_cap
    value = problem.use.shape[1] - 1
    caps[place] = cap
    for i in range(place - 1, -1, -1):
        if caps[i] <= cap:
            break
        caps[i] = cap
    for i in range(place + 1, len(caps)):
        most = caps[i - 1] + (problem.use[i, value] if problem.usable[i] else 0)
        if caps[i] <= most:
            break
        caps[i] = most
