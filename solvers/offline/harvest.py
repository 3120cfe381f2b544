"""Best of two plans, busy period by busy period: where both leave the replica empty, the rest is independent."""

import numpy as np
from numpy.typing import NDArray

from slo_opt.solvers.offline.encode import Problem
from slo_opt.solvers.offline.state import Checkpoints, Plan, cell_of


def crossed(
    problem: Problem, checkpoints: Checkpoints, best: Plan, other: Plan, cuts: NDArray[np.bool_]
) -> Plan | None:
    """`best` with the busy periods in which `other` is worth more; None if there is none.

    Parameters
    ----------
    cuts : (N,) bool array
        Arrivals that find the replica empty under both plans.

    Notes
    -----
    Batches before a cut look ahead over it: play the result before trusting it.
    """
    count = len(best.accept)
    starts = np.unique(np.concatenate([[0], np.flatnonzero(cuts)]))
    mine = np.add.reduceat(problem.value * best.accept, starts)
    theirs = np.add.reduceat(problem.value * other.accept, starts)
    if not np.any(theirs > mine):
        return None
    plan = Plan(best.accept.copy(), best.offset_s.copy(), best.setting.copy())
    for k in np.flatnonzero(theirs > mine):
        start, end = starts[k], starts[k + 1] if k + 1 < len(starts) else count
        plan.accept[start:end] = other.accept[start:end]
        plan.offset_s[start:end] = other.offset_s[start:end]
        first = 0 if start == 0 else cell_of(checkpoints, problem.arrival_s[start])
        last = len(best.setting) if end == count else cell_of(checkpoints, problem.arrival_s[end])
        plan.setting[first:last] = other.setting[first:last]
    return plan
