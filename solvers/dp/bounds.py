"""Lagrangian bound of the admission plan that keeps the tightest tier exact, and prices from subgradient steps.

Give a price to each unit of compute budget at each deadline (``budget_price``), of headroom in each interval
(``headroom_price``) and of memory (``memory_price``). A set that is feasible leaves nowhere less than nothing, so its
value plus what it leaves at these prices is at least its value. With prices fixed, this sum falls apart by candidate,
apart from the tightest tier, which decides what an interval supplies. So the largest sum over *all* sets, feasible or
not, comes out of one backward pass over (candidate, tightest tier), and bounds every completion of every label in O(L).
Relaxing the tier too would leave bounds 14-22 % too high where a tighter tier is not yet present.

Prices start at zero and take Polyak steps towards a target just above the incumbent (B. T. Polyak, USSR Comput. Math.
9(3), 1969; A. M. Geoffrion, Math. Programming Study 2, 1974): any non-negative prices give a valid bound.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.tables import Tables

FloatArray = NDArray[np.float64]
NEVER = -1e300
PATIENCE = 6  # steps without progress before the step length is halved


class Prices(NamedTuple):
    """Prices, and what follows from them.

    Parameters
    ----------
    budget_price, headroom_price : (L, N + 1) float arrays
        Value of a ps of budget left at a deadline, of a ppm of headroom left in an interval.
    memory_price : (N + 1,) float array
        Value of a block left in an interval.
    budget, load, memory : float arrays, (L, N + 1), (L, N + 1), (N + 1,)
        What a ps of budget, a ppm of load and a block are worth from this interval on.
    gain : (N,) float array
        Value of accepting a candidate, less what it uses.
    ahead : (N + 1, K + 1) float array
        Most that intervals and candidates from here on add, by tightest tier so far, if something is accepted before.
    first : (N + 1,) float array
        Most that a set reaches whose first candidate is here or later; `NEVER` if there is none.
    error : (1,) float array
        Bound on the rounding error of any bound computed from these prices.
    """

    budget_price: FloatArray
    headroom_price: FloatArray
    memory_price: FloatArray
    budget: FloatArray
    load: FloatArray
    memory: FloatArray
    gain: FloatArray
    ahead: FloatArray
    first: FloatArray
    error: FloatArray


class Slack(NamedTuple):
    """What a set leaves of each priced resource; shapes as the prices. `chosen` is the set."""

    budget: FloatArray
    headroom: FloatArray
    memory: FloatArray
    chosen: NDArray[np.bool_]


@njit(cache=True)
def zero_prices(problem: Tables) -> Prices:
    """Prices of zero; nothing derived yet."""
    pieces, count = problem.work_ps.shape
    return Prices(
        np.zeros((pieces, count + 1)),
        np.zeros((pieces, count + 1)),
        np.zeros(count + 1),
        np.zeros((pieces, count + 1)),
        np.zeros((pieces, count + 1)),
        np.zeros(count + 1),
        np.zeros(count),
        np.zeros((count + 1, problem.supply_ps.shape[2])),
        np.zeros(count + 1),
        np.zeros(1),
    )


@njit(cache=True)
def derive(problem: Tables, prices: Prices) -> float:
    """Fill what follows from the prices; return the bound on the value of any set, rounding error included.

    Rounding: each result is a sum of fewer than ``n = (N + 2) (4 L + 8)`` terms, built in steps whose intermediate
    results are at most ``size``, the sum of the absolute values of all terms. The error of such a sum is below
    ``n * 2**-53 * size`` to first order; ``error`` is eight times that.
    """
    pieces, count = problem.work_ps.shape
    tiers = problem.supply_ps.shape[2] - 1
    budget, load, memory, gain = prices.budget, prices.load, prices.memory, prices.gain
    ahead, first = prices.ahead, prices.first
    size = 1.0
    memory[count] = 0.0
    ahead[count, :] = 0.0
    for piece in range(pieces):
        price = prices.headroom_price[piece, count]
        budget[piece, count] = 0.0
        load[piece, count] = price
        if price > 0.0:
            for k in range(tiers + 1):
                ahead[count, k] += price * problem.least_headroom_ppm[piece, count, k]
                size += price * abs(problem.least_headroom_ppm[piece, count, k])
    first[count] = NEVER
    for i in range(count - 1, -1, -1):
        free_worth = prices.memory_price[i] * problem.least_free_blocks[i]
        memory[i] = memory[i + 1] + prices.memory_price[i]
        cost = problem.blocks[i] * memory[i]
        idle_worth = 0.0
        for piece in range(pieces):
            worth = budget[piece, i + 1] + prices.budget_price[piece, i]
            budget[piece, i] = worth
            cost += worth * problem.work_ps[piece, i] + load[piece, i + 1] * problem.load_ppm[piece, i]
            load[piece, i] = load[piece, i + 1] + problem.length_us[i] * worth + prices.headroom_price[piece, i]
            idle_worth += worth * problem.idle_budget_ps[piece, i]
        gain[i] = problem.value[i] - cost
        size += problem.value[i] + cost + abs(free_worth)
        own, must, usable = problem.tier[i], problem.mandatory[i], problem.usable[i]
        with_it = gain[i] + ahead[i + 1, own] + free_worth + idle_worth if usable else NEVER
        first[i] = with_it if must or with_it > first[i + 1] else first[i + 1]
        for k in range(tiers + 1):
            accepted, declined = gain[i] + ahead[i + 1, min(k, own)], ahead[i + 1, k]
            ahead[i, k] = free_worth + (accepted if must or (usable and accepted > declined) else declined)
        for piece in range(pieces):
            worth, price = budget[piece, i], prices.headroom_price[piece, i]
            if worth > 0.0:
                supply = problem.supply_ps[piece, i]
                for k in range(tiers + 1):
                    ahead[i, k] += worth * supply[k]
                size += worth * max(abs(supply[0]), abs(supply[tiers]))
            if price > 0.0:
                headroom = problem.least_headroom_ppm[piece, i]
                for k in range(tiers + 1):
                    ahead[i, k] += price * headroom[k]
                size += price * max(abs(headroom[0]), abs(headroom[tiers]))
    prices.error[0] = size * (count + 2) * (4 * pieces + 8) * 2.0**-50
    return first[0] + prices.error[0]


@njit(cache=True)
def maximiser(problem: Tables, prices: Prices, slack: Slack) -> None:
    """The set behind ``first[0]`` and what it leaves: a subgradient of the bound.

    Before its first candidate nothing is demanded, so nothing is left.
    """
    pieces, count = problem.work_ps.shape
    chosen, ahead = slack.chosen, prices.ahead
    chosen[:] = False
    start = 0
    while start < count and not problem.mandatory[start] and prices.first[start + 1] == prices.first[start]:
        start += 1
    slack.budget[:, :start] = 0.0
    slack.headroom[:, : start + 1] = 0.0
    slack.memory[:start] = 0.0
    held = 0
    tightest = problem.supply_ps.shape[2] - 1
    loads = np.zeros(pieces, np.int64)
    budgets = np.zeros(pieces, np.int64)
    for i in range(start, count):
        tier = min(tightest, problem.tier[i])
        accept = problem.mandatory[i] or i == start
        accept = accept or (problem.usable[i] and prices.gain[i] + ahead[i + 1, tier] > ahead[i + 1, tightest])
        for piece in range(pieces):
            if i == start:
                budgets[piece] = problem.idle_budget_ps[piece, i]
            else:
                budgets[piece] += problem.supply_ps[piece, i, tightest] - problem.length_us[i] * loads[piece]
            if accept:
                budgets[piece] -= problem.work_ps[piece, i]
                loads[piece] += problem.load_ppm[piece, i]
            slack.budget[piece, i] = budgets[piece]
        if accept:
            chosen[i] = True
            held += problem.blocks[i]
            tightest = tier
        slack.memory[i] = problem.least_free_blocks[i] - held
        for piece in range(pieces):
            slack.headroom[piece, i + 1] = problem.least_headroom_ppm[piece, i + 1, tightest] - loads[piece]


@njit(cache=True)
def _norm(price: FloatArray, left: FloatArray, unit: float) -> float:
    """Squared length, in units, of the part of the subgradient along which the prices can move."""
    total = 0.0
    for i in range(len(price)):
        if left[i] < 0.0 or price[i] > 0.0:
            total += (left[i] * unit) ** 2
    return total


@njit(cache=True)
def _move(price: FloatArray, left: FloatArray, step: float) -> None:
    for i in range(len(price)):
        price[i] = max(0.0, price[i] - step * left[i])


@njit(cache=True)
def _copy_prices(source: Prices, target: Prices) -> None:
    target.budget_price[:] = source.budget_price
    target.headroom_price[:] = source.headroom_price
    target.memory_price[:] = source.memory_price


@njit(cache=True)
def tighten(problem: Tables, prices: Prices, slack: Slack, incumbent: int, max_steps: int) -> float:
    """Improve the prices by Polyak steps until the bound proves the incumbent optimal, or progress ends.

    Parameters
    ----------
    prices : Prices
        Changed in place; the best prices met, and what follows from them, are left in it.
    slack : Slack
        Room to work in; the last maximiser is left in it.
    incumbent : int
        Value of the best set known.
    max_steps : int
        Most steps.

    Returns
    -------
    float
        Valid upper bound on the value of any set.
    """
    pieces, count = problem.work_ps.shape
    best = zero_prices(problem)
    budget_unit, load_unit = 1.0 / (1.0 + problem.work_ps.mean()), 1.0 / (1.0 + problem.load_ppm.mean())
    memory_unit = 1.0 / (1.0 + problem.blocks.mean())
    target = incumbent + 0.5 * problem.quantum
    least, length, idle_steps = np.inf, 1.0, 0
    for _ in range(max_steps):
        bound = derive(problem, prices)
        if bound < least - 0.01 * problem.quantum:
            idle_steps = 0
        else:
            idle_steps += 1
            if idle_steps == PATIENCE:
                length *= 0.5
                idle_steps = 0
        if bound < least:
            least = bound
            _copy_prices(prices, best)
        if least < incumbent + problem.quantum or length < 0.1:
            break
        maximiser(problem, prices, slack)
        norm = _norm(prices.memory_price, slack.memory, memory_unit)
        for piece in range(pieces):
            norm += _norm(prices.budget_price[piece], slack.budget[piece], budget_unit)
            norm += _norm(prices.headroom_price[piece], slack.headroom[piece], load_unit)
        if norm == 0.0:
            break
        step = length * (bound - target) / norm
        _move(prices.memory_price, slack.memory, step * memory_unit**2)
        for piece in range(pieces):
            _move(prices.budget_price[piece], slack.budget[piece], step * budget_unit**2)
            _move(prices.headroom_price[piece], slack.headroom[piece], step * load_unit**2)
    _copy_prices(best, prices)
    return derive(problem, prices)
