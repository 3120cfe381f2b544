"""Label-setting in deadline order: partial sets as labels, pruned by bound and by dominance, kept to a given width.

One pass keeps at most `width` labels a candidate, those of the highest bounds, and remembers the highest bound it had to
drop. What it proves is the larger of that and the best set it found; with nothing dropped above, the set is optimal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray
from slo_opt.solvers.dp.bounds import FloatArray, Prices
from slo_opt.solvers.dp.tables import Tables

# Columns of a label; then the loads and the budgets of the pieces.
VALUE, TIER, HELD, NODE, LOADS = 0, 1, 2, 3, 4
ROOT = -1


class Labels(NamedTuple):
    """Room for the labels of one candidate, and the tree that leads back from them.

    Parameters
    ----------
    rows, next_rows : (2 width, 4 + 2 L) int arrays
        Labels.
    bound, next_bound : (2 width,) float arrays
        Bounds on their completions.
    parent, item : (nodes,) int arrays
        Accepted candidates: each node accepts `item` after `parent`.
    """

    rows: IntArray
    next_rows: IntArray
    bound: FloatArray
    next_bound: FloatArray
    parent: IntArray
    item: IntArray


@njit(cache=True)
def room(problem: Tables, width: int, num_nodes: int) -> Labels:
    """Room for passes of up to `width` labels a candidate."""
    columns = LOADS + 2 * problem.work_ps.shape[0]
    return Labels(
        np.empty((width, columns), np.int64),
        np.empty((2 * width + 2, columns), np.int64),
        np.empty(width, np.float64),
        np.empty(2 * width + 2, np.float64),
        np.empty(num_nodes, np.int64),
        np.empty(num_nodes, np.int64),
    )


@njit(cache=True)
def _dominates(a: IntArray, b: IntArray, pieces: int) -> bool:
    """Whether every completion of label `b` is feasible for label `a` too, and worth no less."""
    if a[VALUE] < b[VALUE] or a[HELD] > b[HELD] or a[TIER] < b[TIER]:
        return False
    for piece in range(pieces):
        if a[LOADS + piece] > b[LOADS + piece] or a[LOADS + pieces + piece] < b[LOADS + pieces + piece]:
            return False
    return True


@njit(cache=True)
def one_pass(
    problem: Tables, prices: Prices, room: Labels, width: int, max_labels: int, best: NDArray[np.bool_], value: int
) -> tuple[int, float, int]:
    """Extend labels candidate by candidate, at most `width` at a time.

    Parameters
    ----------
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
        Labels made.
    """
    pieces, count = problem.work_ps.shape
    tiers = problem.supply_ps.shape[2] - 1
    rows, next_rows, bounds, next_bounds = room.rows, room.next_rows, room.bound, room.next_bound
    error = prices.error[0]
    floor = value + problem.quantum - error
    dropped = 0.0
    alive, nodes, made = 0, 0, 0
    empty = True
    last_mandatory = -1
    for i in range(count):
        if problem.mandatory[i]:
            last_mandatory = i
    best_node = ROOT
    child = np.empty(LOADS + 2 * pieces, np.int64)
    for i in range(count):
        must, usable, own = problem.mandatory[i], problem.usable[i], problem.tier[i]
        blocks, free = problem.blocks[i], problem.least_free_blocks[i]
        found = 0
        # the empty set is label `alive`: it starts from the idle budget
        for number in range(alive + (1 if empty else 0)):
            if number < alive:
                label = rows[number]
                tier = label[TIER]
                for piece in range(pieces):
                    label[LOADS + pieces + piece] += (
                        problem.supply_ps[piece, i, tier] - problem.length_us[i] * label[LOADS + piece]
                    )
                accept = usable and label[HELD] + blocks <= free
            else:
                label = rows[0] if alive == 0 else child
                label = child
                label[VALUE], label[TIER], label[HELD], label[NODE] = 0, tiers, 0, ROOT
                for piece in range(pieces):
                    label[LOADS + piece] = 0
                    label[LOADS + pieces + piece] = problem.idle_budget_ps[piece, i]
                accept = usable
                tier = tiers
            new_tier = min(tier, own)
            if accept:
                for piece in range(pieces):
                    if (
                        label[LOADS + pieces + piece] < problem.work_ps[piece, i]
                        or label[LOADS + piece] + problem.load_ppm[piece, i]
                        > problem.least_headroom_ppm[piece, i + 1, new_tier]
                    ):
                        accept = False
            # worth of the label's state from the next interval on
            worth = label[VALUE] - prices.memory[i + 1] * label[HELD]
            for piece in range(pieces):
                worth += prices.budget[piece, i + 1] * label[LOADS + pieces + piece]
                worth -= prices.load[piece, i + 1] * label[LOADS + piece]
            if accept:
                made += 1
                bound = worth + problem.value[i] - prices.memory[i + 1] * blocks + prices.ahead[i + 1, new_tier]
                for piece in range(pieces):
                    bound -= prices.budget[piece, i + 1] * problem.work_ps[piece, i]
                    bound -= prices.load[piece, i + 1] * problem.load_ppm[piece, i]
                if bound >= floor:
                    row = next_rows[found]
                    row[VALUE] = label[VALUE] + problem.value[i]
                    row[TIER] = new_tier
                    row[HELD] = label[HELD] + blocks
                    for piece in range(pieces):
                        row[LOADS + piece] = label[LOADS + piece] + problem.load_ppm[piece, i]
                        row[LOADS + pieces + piece] = label[LOADS + pieces + piece] - problem.work_ps[piece, i]
                    row[NODE] = nodes
                    room.parent[nodes] = label[NODE]
                    room.item[nodes] = i
                    if row[VALUE] > value and i >= last_mandatory:
                        value = row[VALUE]
                        best_node = nodes
                        floor = value + problem.quantum - error
                    nodes += 1
                    next_bounds[found] = bound
                    found += 1
            if not must and number < alive:
                bound = worth + prices.ahead[i + 1, tier]
                if bound >= floor:
                    next_rows[found] = label
                    next_bounds[found] = bound
                    found += 1
        if empty and (must or prices.first[i + 1] < floor):
            empty = False
        # highest bound first: a label is dominated only by labels of no lower bound
        order = np.argsort(-next_bounds[:found])
        alive = 0
        for place in order:
            bound = next_bounds[place]
            if bound < floor:
                break
            if alive == width:
                dropped = max(dropped, bound)
                break
            dominated = False
            for other in range(alive):
                if _dominates(rows[other], next_rows[place], pieces):
                    dominated = True
                    break
            if not dominated:
                rows[alive] = next_rows[place]
                bounds[alive] = bound
                alive += 1
        if alive == 0 and not empty:
            break
        if made >= max_labels:
            for number in range(alive):
                dropped = max(dropped, bounds[number])
            if empty:
                dropped = max(dropped, prices.first[i + 1])
            break
    if best_node != ROOT:
        best[:] = False
        while best_node != ROOT:
            best[room.item[best_node]] = True
            best_node = room.parent[best_node]
    return value, dropped + error, made
