"""Fixing by reduced cost: what the prices alone decide, so that labels are made for the other candidates only."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.bounds import NEVER, Prices, zero_prices
from slo_opt.solvers.dp.tables import Tables


@njit(cache=True)
def fix(problem: Tables, prices: Prices, floor: float) -> None:
    """Make candidates mandatory or unusable without which, or with which, no set reaches `floor`.

    One forward pass gives the best way to each (interval, tightest tier); with the backward pass of the prices, the
    bound on the sets that accept a candidate and on those that decline it.
    """
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    floor -= 2.0 * prices.error[0]
    worth, ahead = prices.worth, prices.ahead
    before = np.full(tiers + 1, NEVER)
    any_mandatory = False
    for i in range(len(problem.tier)):
        own, gain, usable = problem.tier[i], prices.gain[i], problem.usable[i]
        limits = prices.price[i, 2 * pieces] * problem.free_blocks[i]
        start = NEVER if any_mandatory or not usable else limits + gain
        for k in range(tiers + 1):
            before[k] += limits
        for piece in range(pieces):
            start += worth[i, piece] * problem.idle_ps[i, piece]
            for k in range(tiers + 1):
                before[k] += worth[i, piece] * problem.supply_ps[i, piece, k]
                before[k] += prices.price[i, pieces + piece] * problem.headroom_ppm[i, piece, k]
        with_it = start + ahead[i + 1, own]
        without = NEVER if any_mandatory else prices.first[i + 1]
        for k in range(tiers + 1):
            with_it = max(with_it, before[k] + gain + ahead[i + 1, min(k, own)])
            without = max(without, before[k] + ahead[i + 1, k])
        if usable and not problem.mandatory[i]:
            if with_it < floor:
                problem.usable[i] = usable = False
            elif without < floor:
                problem.mandatory[i] = True
        must = problem.mandatory[i]
        any_mandatory = any_mandatory or must
        for k in range(own):
            accepted = before[k] + gain if usable else NEVER
            before[k] = accepted if must else max(before[k], accepted)
        for k in range(own, tiers + 1):
            if usable:
                start = max(start, before[k] + gain)
            if must:
                before[k] = NEVER
        if usable:
            before[own] = max(before[own], start)


@njit(cache=True)
def restrict(prices: Prices, problem: Tables, keep: NDArray[np.int64]) -> Prices:
    """Prices for the reduced problem: those of candidates left out move to the next one kept."""
    own = zero_prices(problem)
    start = 0
    for i in range(len(keep) + 1):
        end = keep[i] if i < len(keep) else len(prices.gain)
        for interval in range(start, end + 1):
            own.price[i] += prices.price[interval]
        start = end + 1
    return own
