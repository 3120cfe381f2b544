"""Best of two plans, busy period by busy period: where both leave the replica empty, the rest is independent."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.offline.encode import Problem
from slo_opt.solvers.offline.play import Batch, settle, step
from slo_opt.solvers.offline.state import DECODING, NEXT, PAUSED, QUEUED, SETTINGS, Checkpoints, Plan, State, cell_of

_SETTINGS = SETTINGS


@njit(cache=True)
def find_cuts(p: Problem, plan: Plan, s: State, b: Batch, checkpoints: Checkpoints, cuts: NDArray[np.bool_]) -> None:
    """Clear ``cuts[i]`` unless the plan leaves the replica empty from a cell before that of arrival ``i`` up to it."""
    b.sizes[1] = 0
    s.sizes[:] = 0
    s.now_s[0] = 0.0
    seen = 0
    while settle(p, plan, s, b):
        step(p, plan, _SETTINGS[plan.setting[cell_of(checkpoints, s.now_s[0])]], s, b)
        in_flight = s.sizes[DECODING] + s.sizes[QUEUED] + s.sizes[PAUSED]
        while seen < len(cuts) and p.arrival_s[seen] <= s.now_s[0]:
            cuts[seen] = False
            seen += 1
        for i in range(s.sizes[NEXT], seen):
            in_flight += plan.accept[i]
        if in_flight == 0:
            # Arrivals up to the next accepted one find it empty.
            cell = cell_of(checkpoints, s.now_s[0])
            j = seen
            while j < len(cuts):
                cuts[j] &= cell_of(checkpoints, p.arrival_s[j]) > cell
                if plan.accept[j]:
                    break
                j += 1
            seen = max(seen, min(j + 1, len(cuts)))


@njit(cache=True)
def harvest(p: Problem, best: Plan, other: Plan, s: State, b: Batch, checkpoints: Checkpoints, scratch: Plan) -> float:
    """Take over from `other` each busy period in which it is worth more; the value of `best` after.

    Notes
    -----
    Batches before a cut look ahead over it, so the result is played once more and taken only if nobody is late.
    """
    count = len(best.accept)
    cuts = np.ones(count, dtype=np.bool_)
    find_cuts(p, best, s, b, checkpoints, cuts)
    find_cuts(p, other, s, b, checkpoints, cuts)
    scratch.accept[:] = best.accept
    scratch.offset_s[:] = best.offset_s
    scratch.setting[:] = best.setting
    value, gained = 0.0, False
    start = 0
    while start < count:
        end = start + 1
        while end < count and not cuts[end]:
            end += 1
        mine, theirs = 0.0, 0.0
        for i in range(start, end):
            mine += p.value[i] * best.accept[i]
            theirs += p.value[i] * other.accept[i]
        value += max(mine, theirs)
        if theirs > mine:
            gained = True
            scratch.accept[start:end] = other.accept[start:end]
            scratch.offset_s[start:end] = other.offset_s[start:end]
            first = 0 if start == 0 else cell_of(checkpoints, p.arrival_s[start])
            last = len(best.setting) if end == count else cell_of(checkpoints, p.arrival_s[end])
            scratch.setting[first:last] = other.setting[first:last]
        start = end
    if not gained:
        return value
    b.sizes[1] = 0
    s.sizes[:] = 0
    s.now_s[0] = 0.0
    while settle(p, scratch, s, b) and b.sizes[1] == 0:
        step(p, scratch, _SETTINGS[scratch.setting[cell_of(checkpoints, s.now_s[0])]], s, b)
    if b.sizes[1] > 0:
        return float((p.value * best.accept).sum())
    best.accept[:] = scratch.accept
    best.offset_s[:] = scratch.offset_s
    best.setting[:] = scratch.setting
    return value
