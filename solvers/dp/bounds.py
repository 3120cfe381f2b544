"""Lagrangian bound of the admission plan that keeps the tightest tier exact, at given prices.

Give a price to each unit of compute budget at each deadline, of headroom in each interval, and of memory. A set that is
feasible leaves nowhere less than nothing, so its value plus what it leaves at these prices is at least its value. With
prices fixed, this sum falls apart by candidate, apart from the tightest tier, which decides what an interval supplies.
So the largest sum over *all* sets, feasible or not, comes out of one backward pass over (candidate, tightest tier), and
bounds every completion of every label in O(L). Relaxing the tier too would leave bounds 14-22 % too high where a
tighter tier is not yet present.

References
----------
M. L. Fisher, The Lagrangian relaxation method for solving integer programming problems, Management Science 27(1), 1981.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.tables import Tables

FloatArray = NDArray[np.float64]
NEVER = -1e300


class Prices(NamedTuple):
    """Prices, and what follows from them. Resources (columns) as in `Tables`, without the value: ``P = 2 L + 1``.

    Parameters
    ----------
    price : (N + 1, P) float array
        Of a ps of budget left at a deadline, a ppm of headroom left in an interval, a block left in an interval.
    worth : (N + 1, P) float array
        Of a ps of budget, and cost of a ppm of load and of a block, from this interval on.
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
    count, priced = problem.use.shape[0], problem.use.shape[1] - 1
    return Prices(
        np.zeros((count + 1, priced)),
        np.zeros((count + 1, priced)),
        np.zeros(count),
        np.zeros((count + 1, problem.supply_ps.shape[2])),
        np.zeros(count + 1),
        np.zeros(1),
    )


@njit(cache=True)
def derive(problem: Tables, prices: Prices) -> float:
    """Fill what follows from the prices; return the bound on the value of any feasible set, but for rounding errors.

    Elements are indexed one by one, since views of rows cost more than what is done with them.
    """
    count = len(problem.tier)
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    memory, value = 2 * pieces, 2 * pieces + 1
    use, supply, headroom = problem.use, problem.supply_ps, problem.headroom_ppm
    price, worth, ahead, first = prices.price, prices.worth, prices.ahead, prices.first
    worth[count, memory] = 0.0
    for piece in range(pieces):
        worth[count, piece] = 0.0
        worth[count, pieces + piece] = price[count, pieces + piece]
    for k in range(tiers + 1):
        ahead[count, k] = 0.0
        for piece in range(pieces):
            ahead[count, k] += price[count, pieces + piece] * headroom[count, piece, k]
    first[count] = NEVER
    for i in range(count - 1, -1, -1):
        held = worth[i + 1, memory] + price[i, memory]
        worth[i, memory] = held
        limits = price[i, memory] * problem.free_blocks[i]
        gain = use[i, value] - use[i, memory] * held
        with_it = limits
        for piece in range(pieces):
            budget = worth[i + 1, piece] + price[i, piece]
            load = worth[i + 1, pieces + piece]
            worth[i, piece] = budget
            worth[i, pieces + piece] = load + problem.length_us[i] * budget + price[i, pieces + piece]
            gain -= budget * use[i, piece] + load * use[i, pieces + piece]
            with_it += budget * problem.idle_ps[i, piece]
        prices.gain[i] = gain
        own, must = problem.tier[i], problem.mandatory[i]
        accepted = gain if must or problem.usable[i] else NEVER
        declined = NEVER if must else 0.0
        first[i] = max(with_it + accepted + ahead[i + 1, own], declined + first[i + 1])
        for k in range(tiers + 1):
            ahead[i, k] = limits + max(accepted + ahead[i + 1, min(k, own)], declined + ahead[i + 1, k])
        for piece in range(pieces):
            budget, rate = worth[i, piece], price[i, pieces + piece]
            if budget > 0.0 or rate > 0.0:
                for k in range(tiers + 1):
                    ahead[i, k] += budget * supply[i, piece, k] + rate * headroom[i, piece, k]
    return max(0.0, first[0])


@njit(cache=True)
def rounding(problem: Tables, prices: Prices) -> float:
    """Fill, and return, the bound on the rounding error of any bound computed from these prices, once derived.

    Each is a sum of fewer than ``n = (N + 2) (4 L + 8)`` terms, built in steps whose intermediate results are at most
    ``size``, the sum of the absolute values of all terms. The error of such a sum is below ``n * 2**-53 * size`` to
    first order; ``error`` is eight times that.
    """
    count, resources = problem.use.shape
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    price, worth = prices.price, prices.worth
    size = 1.0
    for i in range(count + 1):
        for piece in range(pieces):
            supply = max(abs(problem.supply_ps[i, piece, 0]), abs(problem.supply_ps[i, piece, tiers]))
            headroom = max(abs(problem.headroom_ppm[i, piece, 0]), abs(problem.headroom_ppm[i, piece, tiers]))
            size += worth[i, piece] * supply + price[i, pieces + piece] * headroom
        if i < count:
            size += price[i, 2 * pieces] * abs(problem.free_blocks[i]) + problem.use[i, resources - 1]
            for r in range(resources - 1):
                size += worth[i, r] * problem.use[i, r]
    prices.error[0] = size * (count + 2) * (4 * pieces + 8) * 2.0**-50
    return prices.error[0]


@njit(cache=True)
def maximiser(problem: Tables, prices: Prices, left: FloatArray, chosen: NDArray[np.bool_]) -> None:
    """The set behind ``first[0]`` and what it leaves of each resource, ``(N + 1, P)``: a subgradient of the bound.

    Before its first candidate nothing is demanded, so nothing is left.
    """
    count = len(problem.tier)
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    memory = 2 * pieces
    use, ahead, first = problem.use, prices.ahead, prices.first
    start = 0
    while start < count and not problem.mandatory[start] and first[start + 1] == first[start]:
        chosen[start] = False
        start += 1
    left[: start + 1] = 0.0
    tightest = tiers
    taken = np.zeros(memory + 1)  # budget in place of work
    for i in range(start, count):
        tier = min(tightest, problem.tier[i])
        accept = problem.mandatory[i] or i == start
        accept = accept or (problem.usable[i] and prices.gain[i] + ahead[i + 1, tier] > ahead[i + 1, tightest])
        chosen[i] = accept
        for piece in range(pieces):
            if i == start:
                taken[piece] = problem.idle_ps[i, piece]
            else:
                taken[piece] += problem.supply_ps[i, piece, tightest] - problem.length_us[i] * taken[pieces + piece]
        if accept:
            tightest = tier
            taken[memory] += use[i, memory]
            for piece in range(pieces):
                taken[piece] -= use[i, piece]
                taken[pieces + piece] += use[i, pieces + piece]
        left[i, memory] = problem.free_blocks[i] - taken[memory]
        for piece in range(pieces):
            left[i, piece] = taken[piece]
            left[i + 1, pieces + piece] = problem.headroom_ppm[i + 1, piece, tightest] - taken[pieces + piece]
    left[count, memory] = 0.0
    for piece in range(pieces):
        left[count, piece] = 0.0
