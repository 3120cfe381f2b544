"""Level 2 as a CVXPY problem, in matrix form over one-hot tightest tiers.

``tightest[i, k]`` is 1 where ``k`` is the tightest accepted tier of interval ``i`` (``K``: nothing accepted), so that
supply and headroom are inner products with the data, and cumulative sums over intervals are matrix products. See
formulations/README.md, level 2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from slo_opt.domain.admission import AdmissionProblem

PS_PER_UNIT = 1e9  # budgets in ms, shares in 0.001: the solver's tolerance of 1e-6 is below what decides
PPM_PER_UNIT = 1e3


@dataclass(frozen=True, slots=True)
class AdmissionProgram:
    """The program and its decision.

    Parameters
    ----------
    program : cvxpy.Problem
        A maximisation.
    accept : (N,) cvxpy.Variable
        Boolean.
    """

    program: cp.Problem
    accept: cp.Variable


def admission_program(problem: AdmissionProblem, excluded: Iterable[Sequence[int]] = ()) -> AdmissionProgram:
    """State the problem; needs at least one candidate.

    Parameters
    ----------
    problem : AdmissionProblem
        ``N >= 1`` candidates, ``L`` pieces, ``K`` tiers.
    excluded : iterable of sets
        Sets to forbid together with all that contain them (costs are not negative, so these fail as well).
    """
    count, tiers = problem.num_candidates, problem.num_tiers
    accept = cp.Variable(count, boolean=True, name="accept")
    tightest = cp.Variable((count + 1, tiers + 1), nonneg=True, name="tightest")
    at_most = np.triu(np.ones((tiers + 1, tiers)))  # column k adds up the tiers up to k
    one = np.ones(tiers + 1)
    present = tightest @ at_most
    appears = (problem.tier[:, None] <= np.arange(tiers)).astype(float)
    constraints: list[Any] = [
        tightest @ one == 1,
        tightest[0, tiers] == 1,
        present[1:] >= present[:-1],
        present[1:] >= cp.multiply(appears, cp.reshape(accept, (count, 1), order="C") @ np.ones((1, tiers))),
        accept >= problem.mandatory.astype(float),
    ]

    before = np.tril(np.ones((count + 1, count)), -1)  # row i adds up the candidates before interval i
    up_to = np.tril(np.ones((count, count)))  # and here the intervals, or candidates, up to i
    length = problem.length_us * (PPM_PER_UNIT / PS_PER_UNIT)
    for piece in range(problem.supply_ps.shape[0]):
        supply, headroom = problem.supply_ps[piece] / PS_PER_UNIT, problem.headroom_ppm[piece] / PPM_PER_UNIT
        load = (before * (problem.load_ppm[piece] / PPM_PER_UNIT)) @ accept
        gain = cp.multiply(supply, tightest) @ one - cp.multiply(length, load)
        budget = up_to @ (gain[:count] - cp.multiply(problem.work_ps[piece] / PS_PER_UNIT, accept))
        debt = np.maximum(-np.cumsum(problem.supply_ps[piece, :count, tiers]), 0) / PS_PER_UNIT
        constraints.append(budget + cp.multiply(debt, tightest[1:, tiers]) >= 0)
        share = headroom.copy()
        share[:, tiers] = np.maximum(share[:, tiers], 0.0)  # nothing is demanded before the first acceptance
        constraints.append(load[1:] <= (cp.multiply(share, tightest) @ one)[1:])

    free = problem.free_blocks.astype(float)
    held = (up_to * problem.blocks) @ accept
    empty = tightest[1:, tiers]
    constraints.append(held <= np.maximum(free[:count], 0.0) + cp.multiply(np.minimum(free[:count], 0.0), 1 - empty))
    last = max(free[count], 0.0) + min(free[count], 0.0) * (1 - tightest[count, tiers])
    constraints.append(problem.blocks.astype(float) @ accept <= last)
    constraints += [cp.sum(accept[list(chosen)]) <= len(chosen) - 1 for chosen in excluded]
    return AdmissionProgram(cp.Problem(cp.Maximize(problem.value.astype(float) @ accept), constraints), accept)
