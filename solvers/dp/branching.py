"""What the prices leave open: fixing by reduced cost, then branch and bound on what the relaxation accepts by halves.

A node is a set of mandatory and of unusable candidates, and a limit on the tightest tier. Its prices start from its
parent's; a narrow pass of labels then closes it, or it branches: on whether a tier is accepted at all, where the
relaxation mixes sets with and without it, else on the candidate whose share is nearest to a half.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.bounds import NEVER, Prices, zero_prices
from slo_opt.solvers.dp.incumbent import insertion, replay
from slo_opt.solvers.dp.labels import one_pass
from slo_opt.solvers.dp.prices import Maximum, cap_prefixes, new_maximum, tighten
from slo_opt.solvers.dp.tables import Tables

NODE_STEPS = 60
ROUNDS = 3  # of prices and caps before any labels
NODE_WIDTH = 16
CANDIDATES_PER_LABEL = 12  # that a step of the prices passes in the time in which a label is extended
WIDTHS = (16, 128)  # of the passes before any branching
PASSES_SHARE = 2  # one half of the effort goes into them at most
MAX_OPEN = 64
TIER_FIRST = 0.1  # share from which a tier is branched on before any candidate


@njit(cache=True)
def fix(problem: Tables, prices: Prices, floor: float) -> None:
    """Make candidates mandatory or unusable without which, or with which, no set reaches `floor`.

    One forward pass gives the best way to each (interval, tightest tier); with the backward pass of the prices, the
    bound on the sets that accept a candidate and on those that decline it.
    """
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    memory, value = 2 * pieces, 2 * pieces + 1
    floor -= 2.0 * prices.error[0]
    worth, ahead = prices.worth, prices.ahead
    before = np.full(tiers + 1, NEVER)
    any_mandatory = False
    for i in range(len(problem.tier)):
        rates, own, gain = prices.price[i], problem.tier[i], prices.gain[i]
        usable = problem.usable[i]
        limits = rates[memory] * problem.free_blocks[i] + rates[value] * problem.value_cap[i]
        start = NEVER if any_mandatory or not usable else limits + gain
        for k in range(tiers + 1):
            before[k] += limits
        for piece in range(pieces):
            start += worth[i, piece] * problem.idle_ps[i, piece]
            for k in range(tiers + 1):
                before[k] += worth[i, piece] * problem.supply_ps[i, piece, k]
                before[k] += rates[pieces + piece] * problem.headroom_ppm[i, piece, k]
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
def _branch(problem: Tables, prices: Prices, maximum: Maximum) -> tuple[int, int]:
    """What to branch on: ``(tier, -1)`` or ``(-1, candidate)``; both -1 if nothing is free."""
    below, best_tier, best_share = 0.0, -1, TIER_FIRST
    tiers = problem.supply_ps.shape[2] - 1
    for k in range(min(problem.final_tier[0], tiers)):
        below += maximum.tier_share[k]
        if min(below, 1.0 - below) > best_share:
            best_tier, best_share = k, min(below, 1.0 - below)
    if best_tier >= 0:
        for i in range(len(problem.tier)):
            if problem.mandatory[i] and problem.tier[i] <= best_tier:
                best_tier = -1
                break
    if best_tier >= 0:
        return best_tier, -1
    candidate, closest = -1, np.inf
    for i in range(len(problem.tier)):
        if problem.usable[i] and not problem.mandatory[i]:
            distance = abs(maximum.share[i] - 0.5) + 0.1 * abs(prices.gain[i]) / problem.quantum
            if distance < closest:
                candidate, closest = i, distance
    return -1, candidate


@njit(cache=True)
def search(
    problem: Tables, prices: Prices, best: NDArray[np.bool_], value: int, bound: float, max_labels: int
) -> tuple[int, float, int]:
    """Branch and bound, depth first.

    Parameters
    ----------
    problem, prices : Tables, Prices
        Changed in place.
    best : (N,) bool array
        Filled with a set better than `value`, if one is found.
    value : int
        Of the best set known.
    bound : float
        Proved for the whole problem.
    max_labels : int
        Effort: labels, and steps of the prices at the exchange rate `CANDIDATES_PER_LABEL`.

    Returns
    -------
    value : int
    bound : float
        Proved for the whole problem.
    effort : int
    """
    count, resources = problem.use.shape
    must = np.empty((MAX_OPEN, count), np.bool_)
    usable = np.empty((MAX_OPEN, count), np.bool_)
    price = np.empty((MAX_OPEN, count + 1, resources))
    final_tier = np.empty(MAX_OPEN, np.int64)
    bounds = np.empty(MAX_OPEN)
    final_tier[0] = problem.final_tier[0]
    maximum = new_maximum(problem)
    state = np.zeros(resources, np.int64)
    quantum = problem.quantum
    open_nodes, effort, unexplored = 1, 0, 0.0
    if not replay(problem, problem.mandatory, count, state)[0]:
        return value, float(value), effort
    for number in range(ROUNDS):
        if number and not cap_prefixes(problem, prices):
            break
        bound = min(bound, tighten(problem, prices, count, maximum, value, NODE_STEPS))
        effort += NODE_STEPS * count // CANDIDATES_PER_LABEL
        if bound < value + quantum:
            return value, float(value), effort
        other = insertion(problem, maximum.chosen, prices.gain, True)
        other_value = (other * problem.use[:, resources - 1]).sum()
        if other_value > value:
            best[:], value = other, other_value
    fix(problem, prices, value + quantum)
    must[0], usable[0], price[0] = problem.mandatory, problem.usable, prices.price
    for width in WIDTHS:
        if bound < value + quantum or effort * PASSES_SHARE >= max_labels:
            break
        value, dropped, labels = one_pass(problem, prices, width, max_labels // PASSES_SHARE - effort, best, value)
        effort += labels
        bound = min(bound, max(dropped, float(value)))
    bounds[0] = bound
    while open_nodes:
        open_nodes -= 1
        bound = bounds[open_nodes]
        if bound < value + quantum:
            continue
        if effort >= max_labels:
            unexplored = max(unexplored, bound)
            continue
        problem.mandatory[:] = must[open_nodes]
        problem.usable[:] = usable[open_nodes]
        problem.final_tier[0] = final_tier[open_nodes]
        effort += count
        if not replay(problem, problem.mandatory, count, state)[0]:
            continue
        prices.price[:] = price[open_nodes]
        maximum.share[:] = 0.5
        maximum.tier_share[:] = 0.0
        bound = min(bound, tighten(problem, prices, count, maximum, value, NODE_STEPS))
        effort += NODE_STEPS * count // CANDIDATES_PER_LABEL
        if bound < value + quantum:
            continue
        other = insertion(problem, maximum.chosen, prices.gain, True)
        other_value = (other * problem.use[:, resources - 1]).sum()
        if other_value > value:
            best[:], value = other, other_value
        fix(problem, prices, value + quantum)
        value, dropped, labels = one_pass(problem, prices, NODE_WIDTH, NODE_WIDTH * count, best, value)
        effort += labels
        bound = min(bound, max(dropped, float(value)))
        if bound < value + quantum:
            continue
        tier, candidate = _branch(problem, prices, maximum)
        if tier < 0 and candidate < 0:
            continue  # one set is left, and the labels have seen it
        if open_nodes + 2 > MAX_OPEN:
            unexplored = max(unexplored, bound)
            continue
        for child in range(2):
            place = open_nodes + child
            must[place], usable[place], price[place] = problem.mandatory, problem.usable, prices.price
            final_tier[place], bounds[place] = problem.final_tier[0], bound
            if tier >= 0 and child == 0:
                usable[place] &= problem.tier > tier
            elif tier >= 0:
                final_tier[place] = tier
            else:
                accept = (maximum.share[candidate] >= 0.5) == (child == 1)
                if accept:
                    must[place, candidate] = True
                else:
                    usable[place, candidate] = False
        open_nodes += 2
    return value, max(float(value), unexplored), effort


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
