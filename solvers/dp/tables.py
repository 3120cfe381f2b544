"""Admission problem as the DP reads it: candidate by candidate, with limits that only need a look on acceptance."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray


class Tables(NamedTuple):
    """Problem data. ``N`` candidates, ``L`` roofline pieces, ``K`` tiers; units as in `AdmissionProblem`.

    Load and blocks held never shrink and the tightest tier never loosens. So it is the same to compare them with the
    limits of every interval, or once, when a candidate is accepted, with the least limit of all intervals to come.

    Resources are columns ``0..R-1`` in the order compute budget of each piece, load of each piece, memory, value:
    ``R = 2 L + 2``.

    Parameters
    ----------
    use : (N, R) int array
        What a candidate takes: work in ps, load in ppm, blocks, and its value.
    tier : (N,) int array
        As in `AdmissionProblem`.
    mandatory, usable : (N,) bool array
        Usable candidates would be feasible alone; the others are in no feasible set.
    length_us : (N + 1,) int array
        As in `AdmissionProblem`.
    supply_ps, headroom_ppm : (N + 1, L, K + 1) int array
        Of an interval, by tightest tier. Headroom is the least of this and all later intervals.
    free_blocks : (N + 1,) int array
        Least of this and all later intervals.
    idle_ps : (N, L) int array
        Budget at each deadline as long as nothing is accepted.
    quantum : int
        Greatest common divisor of all values: a better set is better by at least this.
    """

    use: IntArray
    tier: IntArray
    mandatory: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    length_us: IntArray
    supply_ps: IntArray
    headroom_ppm: IntArray
    free_blocks: IntArray
    idle_ps: IntArray
    quantum: int


@njit(cache=True)
def tables(
    tier: IntArray,
    work_ps: IntArray,
    load_ppm: IntArray,
    blocks: IntArray,
    value: IntArray,
    mandatory: NDArray[np.bool_],
    length_us: IntArray,
    supply_ps: IntArray,
    headroom_ppm: IntArray,
    free_blocks: IntArray,
) -> Tables:
    """Tables from the arrays of an `AdmissionProblem`, in O(N L K)."""
    pieces, count = work_ps.shape
    tiers = supply_ps.shape[2] - 1
    use = np.empty((count, 2 * pieces + 2), np.int64)
    supply = np.empty((count + 1, pieces, tiers + 1), np.int64)
    headroom = np.empty((count + 1, pieces, tiers + 1), np.int64)
    free = free_blocks.copy()
    idle = np.empty((count, pieces), np.int64)
    usable = np.empty(count, np.bool_)
    for i in range(count, -1, -1):
        if i < count:
            free[i] = min(free[i], free[i + 1])
        for piece in range(pieces):
            for k in range(tiers + 1):
                supply[i, piece, k] = supply_ps[piece, i, k]
                headroom[i, piece, k] = headroom_ppm[piece, i, k]
                if i < count:
                    headroom[i, piece, k] = min(headroom[i, piece, k], headroom[i + 1, piece, k])
    quantum = 0
    for i in range(count):
        use[i, 2 * pieces], use[i, 2 * pieces + 1] = blocks[i], value[i]
        usable[i] = blocks[i] <= free[i]
        for piece in range(pieces):
            use[i, piece], use[i, pieces + piece] = work_ps[piece, i], load_ppm[piece, i]
            idle[i, piece] = supply[i, piece, tiers] + (idle[i - 1, piece] if i else 0)
            fits = load_ppm[piece, i] <= headroom[i + 1, piece, tier[i]] and work_ps[piece, i] <= idle[i, piece]
            usable[i] = usable[i] and fits
        a, b = quantum, value[i]
        while b:
            a, b = b, a % b
        quantum = a
    return Tables(
        use,
        tier.copy(),
        mandatory.copy(),
        usable,
        length_us.copy(),
        supply,
        headroom,
        free,
        idle,
        max(1, quantum),
    )


@njit(cache=True)
def reduced(problem: Tables, keep: IntArray) -> Tables:
    """The problem with only the candidates `keep`, ascending: their intervals take in those of the others."""
    count, resources = len(keep), problem.use.shape[1]
    _, pieces, columns = problem.supply_ps.shape
    use = np.empty((count, resources), np.int64)
    length = np.zeros(count + 1, np.int64)
    supply = np.zeros((count + 1, pieces, columns), np.int64)
    headroom = np.empty((count + 1, pieces, columns), np.int64)
    free = np.empty(count + 1, np.int64)
    start = 0
    for i in range(count + 1):
        end = keep[i] if i < count else len(problem.tier)
        headroom[i] = problem.headroom_ppm[start]
        free[i] = problem.free_blocks[end]
        for interval in range(start, end + 1):
            length[i] += problem.length_us[interval]
            supply[i] += problem.supply_ps[interval]
        if i < count:
            use[i] = problem.use[end]
        start = end + 1
    return Tables(
        use,
        problem.tier[keep],
        problem.mandatory[keep],
        problem.usable[keep],
        length,
        supply,
        headroom,
        free,
        problem.idle_ps[keep],
        problem.quantum,
    )
