"""Label-setting in deadline order: partial sets as labels, pruned by bound and by dominance, kept to a given width.

A label is a row of integers: the resources of `Tables` (budget left, load, blocks held, value), the tightest tier, and
its node in the tree of accepted candidates, which leads back to its set.

Where a candidate has more labels than fit, or one that differs little from another, it is absorbed: a label kept is
relaxed to the better of both in each resource. A relaxed label stands for all sets behind it and for none of them. So
it cannot improve the best set, but no better set is lost: if all relaxed labels end below the value sought, the best
set is proved optimal, however few labels were kept; else their values are a bound.

References
----------
D. Bergman, A. A. Cire, W.-J. van Hoeve, J. N. Hooker, Discrete optimization with decision diagrams, INFORMS Journal on
Computing 28(1), 2016.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import FloatArray, Prices
from slo_opt.solvers.dp.incumbent import enter, fits, take
from slo_opt.solvers.dp.tables import Tables

ROOT = -1
RELAXED = -2  # node of a label that stands for several sets
MAX_COMPARED = 256  # labels that a new one is compared with


@njit(cache=True)
def _dominated(rows: IntArray, alive: int, new: IntArray, place: int, pieces: int) -> bool:
    """Whether a row of the first `alive` leaves ``new[place]`` no completion that it has not too, worth no less."""
    for other in range(alive):
        if rows[other, 2 * pieces + 1] < new[place, 2 * pieces + 1]:
            continue
        worse = rows[other, 2 * pieces + 2] < new[place, 2 * pieces + 2]
        for r in range(pieces):
            worse = worse or rows[other, r] < new[place, r] or rows[other, pieces + r] > new[place, pieces + r]
        if not worse and rows[other, 2 * pieces] <= new[place, 2 * pieces]:
            return True
    return False


@njit(cache=True)
def _absorb(
    rows: IntArray,
    bounds: FloatArray,
    alive: int,
    new: IntArray,
    place: int,
    ahead: FloatArray,
    weight: FloatArray,
    most: float,
) -> bool:
    """Relax one of the rows so that it dominates ``new[place]`` too: the one whose bound rises least.

    Done only if the bound rises by at most `most`.
    """
    resources = len(weight)
    pieces = (resources - 2) // 2
    where, least, raised = -1, most, 0.0
    for other in range(alive):
        merged = ahead[max(rows[other, resources], new[place, resources])]
        for r in range(pieces):
            merged += weight[r] * max(rows[other, r], new[place, r])
        for r in range(pieces, resources - 1):
            merged += weight[r] * min(rows[other, r], new[place, r])
        merged += max(rows[other, resources - 1], new[place, resources - 1])
        if merged - bounds[other] <= least:
            where, least, raised = other, merged - bounds[other], merged
    if where < 0:
        return False
    for r in range(resources + 1):
        if pieces <= r < resources - 1:
            rows[where, r] = min(rows[where, r], new[place, r])
        else:
            rows[where, r] = max(rows[where, r], new[place, r])
    rows[where, resources + 1] = RELAXED
    bounds[where] = max(bounds[where], raised)
    return True


@njit(cache=True)
def one_pass(
    problem: Tables, prices: Prices, width: int, max_labels: int, best: NDArray[np.bool_], value: int, tolerance: float
) -> tuple[int, float, int]:
    """Extend labels candidate by candidate, at most `width` at a time.

    Parameters
    ----------
    prices : Prices
        For bounds; derived for the whole problem.
    max_labels : int
        Stop when so many labels have been extended.
    best : (N,) bool array
        Best set known; replaced by a better one.
    value : int
        Its value.
    tolerance : float
        By how much a label's bound may rise for absorbing another though there is room for both.

    Returns
    -------
    value : int
        Of `best`.
    dropped : float
        Bound on the sets that relaxed or unfinished labels stand for; 0 if none of these is left.
    num_labels : int
        Labels extended, one count for each candidate they met.
    """
    count, resources = problem.use.shape
    pieces, tiers = problem.supply_ps.shape[1], problem.supply_ps.shape[2] - 1
    value_at, tier_at, node_at = 2 * pieces + 1, 2 * pieces + 2, 2 * pieces + 3
    rows = np.empty((width + 1, resources + 2), np.int64)
    bounds = np.empty(width + 1)
    next_rows = np.empty((2 * width + 2, resources + 2), np.int64)
    next_bounds = np.empty(2 * width + 2)
    most_nodes = min(max_labels, (width + 1) * count) + width + 2
    parent, item = np.empty(most_nodes, np.int64), np.empty(most_nodes, np.int64)
    weight = np.ones(resources)
    floor = value + problem.quantum - prices.error[0]
    dropped, alive, nodes, best_node = 0.0, 0, 0, ROOT
    extended = 0
    empty = True  # whether the empty set is still a label
    last_mandatory = -1
    for i in range(count):
        if problem.mandatory[i]:
            last_mandatory = i
    for i in range(count):
        own, must = problem.tier[i], problem.mandatory[i]
        ahead = prices.ahead[i + 1]
        for r in range(value_at):
            weight[r] = prices.worth[i + 1, r] if r < pieces else -prices.worth[i + 1, r]
        found = 0
        extended += alive + 1 if empty else alive
        if empty:
            label = rows[alive]
            label[:] = 0
            label[:pieces] = problem.idle_ps[i]
            label[tier_at], label[node_at] = tiers, ROOT
        for number in range(alive + 1 if empty else alive):
            label, is_empty = rows[number], number == alive
            tier = label[tier_at]
            if not is_empty:
                enter(problem, label, i, tier)
                if not must:
                    bound = ahead[tier]
                    for r in range(resources):
                        bound += weight[r] * label[r]
                    if bound >= floor:
                        next_rows[found] = label
                        next_bounds[found] = bound
                        found += 1
            if not problem.usable[i]:
                continue
            tier = min(tier, own)
            take(problem, label, i)
            if not fits(problem, label, i, tier):
                continue
            bound = ahead[tier]
            for r in range(resources):
                bound += weight[r] * label[r]
            if bound < floor and label[value_at] <= value:
                continue
            label[tier_at] = tier
            if label[node_at] != RELAXED:
                parent[nodes], item[nodes] = label[node_at], i
                label[node_at] = nodes
                nodes += 1
            if label[value_at] > value and i >= last_mandatory and label[node_at] != RELAXED:
                value, best_node = label[value_at], label[node_at]
                floor = value + problem.quantum - prices.error[0]
            next_rows[found] = label
            next_bounds[found] = bound
            found += 1
        empty = empty and not must and prices.first[i + 1] >= floor
        # highest bound first: a label is dominated only by labels of no lower bound
        alive = 0
        for place in np.argsort(-next_bounds[:found]):
            bound = next_bounds[place]
            if bound < floor:
                break
            if _dominated(rows, min(alive, MAX_COMPARED), next_rows, place, pieces):
                continue
            if alive == width or (alive and tolerance > 0.0):
                most = tolerance if alive < width else np.inf
                if _absorb(rows, bounds, alive, next_rows, place, ahead, weight, most):
                    continue
            rows[alive] = next_rows[place]
            bounds[alive] = bound
            alive += 1
        if extended >= max_labels:
            for number in range(alive):
                dropped = max(dropped, bounds[number])
            if empty:
                dropped = max(dropped, prices.first[i + 1])
            break
        if alive == 0 and not empty:
            break
    else:
        for number in range(alive):
            if rows[number, node_at] == RELAXED:
                dropped = max(dropped, min(bounds[number], float(rows[number, value_at])))
    if best_node != ROOT:
        best[:] = False
        while best_node != ROOT:
            best[item[best_node]] = True
            best_node = parent[best_node]
    return value, dropped + prices.error[0], extended
