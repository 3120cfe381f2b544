"""Admission problem as the DP reads it: limits that only need a look when a candidate is accepted."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray


class Tables(NamedTuple):
    """Problem data. ``N`` candidates, ``L`` roofline pieces, ``K`` tiers; units as in `AdmissionProblem`.

    Load and blocks held never shrink and the tightest tier never loosens. So it is the same to compare them with the
    limits of every interval, or once, when a candidate is accepted, with the least limit of all intervals to come.

    Parameters
    ----------
    tier, blocks, value : (N,) int arrays
    mandatory : (N,) bool array
    work_ps, load_ppm : (L, N) int arrays
    length_us : (N + 1,) int array
    supply_ps : (L, N + 1, K + 1) int array
        As in `AdmissionProblem`.
    least_headroom_ppm : (L, N + 1, K + 1) int array
        Minimum of ``headroom_ppm`` over this and all later intervals.
    least_free_blocks : (N + 1,) int array
        Minimum of ``free_blocks`` over this and all later intervals.
    idle_budget_ps : (L, N) int array
        Budget at each deadline as long as nothing is accepted.
    usable : (N,) bool array
        Whether the candidate would be feasible alone; if not, it is in no feasible set.
    quantum : int
        Greatest common divisor of all values: a better set is better by at least this.
    """

    tier: IntArray
    blocks: IntArray
    value: IntArray
    mandatory: NDArray[np.bool_]
    work_ps: IntArray
    load_ppm: IntArray
    length_us: IntArray
    supply_ps: IntArray
    least_headroom_ppm: IntArray
    least_free_blocks: IntArray
    idle_budget_ps: IntArray
    usable: NDArray[np.bool_]
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
    """Derive the tables from the arrays of an `AdmissionProblem`, in O(N L K)."""
    pieces, count = work_ps.shape
    tiers = supply_ps.shape[2] - 1
    headroom = headroom_ppm.copy()
    free = free_blocks.copy()
    for i in range(count - 1, -1, -1):
        free[i] = min(free[i], free[i + 1])
        for piece in range(pieces):
            for k in range(tiers + 1):
                headroom[piece, i, k] = min(headroom[piece, i, k], headroom[piece, i + 1, k])
    idle = np.empty((pieces, count), np.int64)
    usable = np.empty(count, np.bool_)
    for i in range(count):
        usable[i] = blocks[i] <= free[i]
    for piece in range(pieces):
        budget = 0
        for i in range(count):
            budget += supply_ps[piece, i, tiers]
            idle[piece, i] = budget
            fits = load_ppm[piece, i] <= headroom[piece, i + 1, tier[i]] and work_ps[piece, i] <= budget
            usable[i] = usable[i] and fits
    quantum = 0
    for i in range(count):
        a, b = quantum, value[i]
        while b:
            a, b = b, a % b
        quantum = a
    return Tables(
        tier,
        blocks,
        value,
        mandatory,
        work_ps,
        load_ppm,
        length_us,
        supply_ps,
        headroom,
        free,
        idle,
        usable,
        max(1, quantum),
    )
