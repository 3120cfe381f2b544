"""Lagrangian bound of the admission plan that keeps the tightest tier exact, at given prices.

Give a price to each unit of compute budget at each deadline, of headroom in each interval, of memory, and of value
below a cap. A set that is feasible leaves nowhere less than nothing, so its value plus what it leaves at these prices
is at least its value. With prices fixed, this sum falls apart by candidate, apart from the tightest tier, which decides
what an interval supplies. So the largest sum over *all* sets, feasible or not, comes out of one backward pass over
(candidate, tightest tier), and bounds every completion of every label in O(L). Relaxing the tier too would leave
bounds 14-22 % too high where a tighter tier is not yet present.

References
----------
M. L. Fisher, The Lagrangian relaxation method for solving integer programming problems, Management Science 27(1), 1981.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.tables import Tables

FloatArray = NDArray[np.float64]
NEVER = -1e300


class Prices(NamedTuple):
    """Prices, and what follows from them. Resources (columns) as in `Tables`.

    Parameters
    ----------
    price : (N + 1, R) float array
        Of a ps of budget left at a deadline, a ppm of headroom left in an interval, a block left in an interval, a unit
        of value left below the cap.
    worth : (N + 1, R) float array
        Of a ps of budget, and cost of a ppm of load, a block, a unit of value, from this interval on.
    gain : (N,) float array
        Value of accepting a candidate, less what it takes.
    ahead : (N + 1, K + 1) float array
        Most that intervals and candidates from here on add, by tightest tier so far, if something is accepted before.
    first : (N + 1,) float array
        Most that a set reaches whose first candidate is here or later; `NEVER` if there is none.
    error : (1,) float array
        Bound on the rounding error of any bound computed from these prices.
    """

    price: FloatArray
    worth: FloatArray
    gain: FloatArray
    ahead: FloatArray
    first: FloatArray
    error: FloatArray


@njit(cache=True)
def zero_prices(problem: Tables) -> Prices:
    """Prices of zero; nothing derived yet."""
    count, resources = problem.use.shape
    return Prices(
        np.zeros((count + 1, resources)),
        np.zeros((count + 1, resources)),
        np.zeros(count),
        np.zeros((count + 1, problem.supply_ps.shape[2])),
        np.zeros(count + 1),
        np.zeros(1),
    )


@njit(cache=True)
def derive(problem: Tables, prices: Prices, end: int) -> float:
    """Fill what follows from the prices; return a bound on the value of any feasible set of the first `end` candidates.

    Rounding: each result is a sum of fewer than ``n = (N + 2) (4 L + 8)`` terms, built in steps whose intermediate
    results are at most ``size``, the sum of the absolute values of all terms. The error of such a sum is below
    ``n * 2**-53 * size`` to first order; ``error`` is eight times that.
    """
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    memory, value = 2 * pieces, 2 * pieces + 1
    price, worth, ahead, first = prices.price, prices.worth, prices.ahead, prices.first
    size = 1.0
    worth[end, :] = 0.0
    ahead[end, :] = 0.0
    for piece in range(pieces):
        rate = price[end, pieces + piece]
        worth[end, pieces + piece] = rate
        if rate > 0.0:
            headroom = problem.headroom_ppm[end, piece]
            for k in range(tiers + 1):
                ahead[end, k] += rate * headroom[k]
            size += rate * max(abs(headroom[0]), abs(headroom[tiers]))
    if end == len(problem.tier):
        for k in range(problem.final_tier[0] + 1, tiers + 1):
            ahead[end, k] = NEVER
    first[end] = NEVER
    for i in range(end - 1, -1, -1):
        use, rates = problem.use[i], price[i]
        worth[i, memory] = worth[i + 1, memory] + rates[memory]
        worth[i, value] = worth[i + 1, value] + rates[value]
        limits = rates[memory] * problem.free_blocks[i] + rates[value] * problem.value_cap[i]
        cost = use[memory] * worth[i, memory] + use[value] * worth[i, value]
        idle_worth = 0.0
        for piece in range(pieces):
            budget = worth[i + 1, piece] + rates[piece]
            worth[i, piece] = budget
            load = worth[i + 1, pieces + piece]
            cost += budget * use[piece] + load * use[pieces + piece]
            worth[i, pieces + piece] = load + problem.length_us[i] * budget + rates[pieces + piece]
            idle_worth += budget * problem.idle_ps[i, piece]
        gain = use[value] - cost
        prices.gain[i] = gain
        size += use[value] + cost + rates[memory] * abs(problem.free_blocks[i]) + rates[value] * problem.value_cap[i]
        own, must, usable = problem.tier[i], problem.mandatory[i], problem.usable[i]
        with_it = gain + ahead[i + 1, own] + limits + idle_worth if usable else NEVER
        first[i] = with_it if must or with_it > first[i + 1] else first[i + 1]
        if must or usable:
            for k in range(tiers + 1):
                accepted = gain + ahead[i + 1, min(k, own)]
                ahead[i, k] = limits + (accepted if must else max(accepted, ahead[i + 1, k]))
        else:
            for k in range(tiers + 1):
                ahead[i, k] = limits + ahead[i + 1, k]
        for piece in range(pieces):
            budget, rate = worth[i, piece], rates[pieces + piece]
            if budget > 0.0:
                supply = problem.supply_ps[i, piece]
                for k in range(tiers + 1):
                    ahead[i, k] += budget * supply[k]
                size += budget * max(abs(supply[0]), abs(supply[tiers]))
            if rate > 0.0:
                headroom = problem.headroom_ppm[i, piece]
                for k in range(tiers + 1):
                    ahead[i, k] += rate * headroom[k]
                size += rate * max(abs(headroom[0]), abs(headroom[tiers]))
    prices.error[0] = size * (end + 2) * (4 * pieces + 8) * 2.0**-50
    return max(0.0, first[0]) + prices.error[0]


@njit(cache=True)
def maximiser(problem: Tables, prices: Prices, end: int, left: FloatArray, chosen: NDArray[np.bool_]) -> int:
    """The set behind ``first[0]``, what it leaves of each resource, ``(N + 1, R)``, and its tightest tier.

    What it leaves is a subgradient of the bound.

    Before its first candidate nothing is demanded, so nothing is left.
    """
    pieces = problem.supply_ps.shape[1]
    memory, value = 2 * pieces, 2 * pieces + 1
    ahead, first = prices.ahead, prices.first
    left[: end + 1] = 0.0
    chosen[:] = False
    start = 0
    while start < end and not problem.mandatory[start] and first[start + 1] == first[start]:
        start += 1
    tightest = problem.supply_ps.shape[2] - 1
    taken: IntArray = np.zeros(2 * pieces + 2, np.int64)  # budget in place of work
    for i in range(start, end):
        use = problem.use[i]
        tier = min(tightest, problem.tier[i])
        accept = problem.mandatory[i] or i == start
        accept = accept or (problem.usable[i] and prices.gain[i] + ahead[i + 1, tier] > ahead[i + 1, tightest])
        for piece in range(pieces):
            if i == start:
                taken[piece] = problem.idle_ps[i, piece]
            else:
                taken[piece] += problem.supply_ps[i, piece, tightest] - problem.length_us[i] * taken[pieces + piece]
        if accept:
            chosen[i] = True
            tightest = tier
            taken[memory] += use[memory]
            taken[value] += use[value]
            for piece in range(pieces):
                taken[piece] -= use[piece]
                taken[pieces + piece] += use[pieces + piece]
        left[i, memory] = problem.free_blocks[i] - taken[memory]
        left[i, value] = problem.value_cap[i] - taken[value]
        for piece in range(pieces):
            left[i, piece] = taken[piece]
            left[i + 1, pieces + piece] = problem.headroom_ppm[i + 1, piece, tightest] - taken[pieces + piece]
    return tightest
