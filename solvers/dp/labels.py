"""Label-setting in deadline order: partial sets as labels, pruned by bound and by dominance, kept to a given width.

One pass keeps at most `width` labels a candidate, those of the highest bounds, and remembers the highest bound it had
to drop. What it proves is the larger of that and the best set it found; if none was dropped, the set is optimal.

A label is a row of integers: the resources of `Tables` (budget left, load, blocks held, value), the tightest tier, and
its node in the tree of accepted candidates, which leads back to its set.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import Prices
from slo_opt.solvers.dp.incumbent import enter, fits, take
from slo_opt.solvers.dp.tables import Tables

ROOT = -1


@njit(cache=True)
def _dominates(a: IntArray, b: IntArray, pieces: int) -> bool:
    """Whether every completion of label `b` is feasible for label `a` too, and worth no less."""
    if a[2 * pieces + 1] < b[2 * pieces + 1] or a[2 * pieces + 2] < b[2 * pieces + 2]:
        return False
    for r in range(pieces):
        if a[r] < b[r]:
            return False
    worse = False
    for r in range(pieces, 2 * pieces + 1):
        worse = worse or a[r] > b[r]
    return not worse


@njit(cache=True)
def one_pass(
    problem: Tables, prices: Prices, width: int, max_labels: int, best: NDArray[np.bool_], value: int
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

    Returns
    -------
    value : int
        Of `best`.
    dropped : float
        Highest bound among labels dropped though they might have led to a better set; 0 if there were none.
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
    weight = np.empty(resources)
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
        worth, ahead = prices.worth[i + 1], prices.ahead[i + 1]
        weight[:pieces] = worth[:pieces]
        weight[pieces:value_at] = -worth[pieces:value_at]
        weight[value_at] = 1.0 - worth[value_at]
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
            parent[nodes], item[nodes] = label[node_at], i
            label[tier_at], label[node_at] = tier, nodes
            nodes += 1
            if label[value_at] > value and i >= last_mandatory:
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
            dominated = False
            for other in range(alive):
                if _dominates(rows[other], next_rows[place], pieces):
                    dominated = True
                    break
            if dominated:
                continue
            if alive == width:
                dropped = max(dropped, bound)
                break
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
    if best_node != ROOT:
        best[:] = False
        while best_node != ROOT:
            best[item[best_node]] = True
            best_node = parent[best_node]
    return value, dropped + prices.error[0], extended
