"""Level 2 as arrays for HiGHS: dense cumulative rows over the accepted and the tiers that are present.

Columns are ``x_j`` (accept candidate ``j``) and ``y_{i,k}`` (some accepted ``j < i`` has a tier at most ``k``), which
ascends in ``i``. Since supply ascends in the tier, ``supply_i = supply[i, K] - Σ_k (supply[i, k + 1] - supply[i, k]) ·
y_{i,k}`` is linear, and ``y`` is pushed down by every row it is in. See formulations/README.md, level 2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slo_opt.domain.admission import AdmissionProblem

FloatArray = NDArray[np.float64]
PS_PER_UNIT = 1e9  # budget rows are in ms: HiGHS' feasibility tolerance of 1e-6 is then 1 ns
PPM_PER_UNIT = 1e3  # and in the rows of shares 0.001 ppm, less than their unit


@dataclass(frozen=True, slots=True)
class AdmissionArrays:
    """``max cost · z, A z <= upper, lower_bound <= z <= upper_bound`` with ``C`` integer columns and ``R`` rows.

    Parameters
    ----------
    cost, lower_bound, upper_bound : (C,) float arrays
        Objective and bounds.
    index, coefficient : tuple of R arrays
        Columns of each row and what stands there.
    upper : (R,) float array
        Right-hand sides.
    num_candidates : int
        The first so many columns are ``x``.
    """

    cost: FloatArray
    lower_bound: FloatArray
    upper_bound: FloatArray
    index: tuple[NDArray[np.int64], ...]
    coefficient: tuple[FloatArray, ...]
    upper: FloatArray
    num_candidates: int


def admission_arrays(problem: AdmissionProblem, excluded: Iterable[Iterable[int]] = ()) -> AdmissionArrays:
    """State the problem as arrays.

    Parameters
    ----------
    problem : AdmissionProblem
        ``N`` candidates, ``L`` pieces, ``K`` tiers.
    excluded : iterable of sets
        Sets to forbid together with all that contain them (costs are not negative, so these fail as well).

    Notes
    -----
    The compute rows are demanded of every interval after the first acceptance, not only where a candidate is accepted:
    the same set of plans, because the budget never shrinks between acceptances, and a tighter relaxation.
    """
    count, tiers = problem.num_candidates, problem.num_tiers
    steps = np.diff(problem.supply_ps, axis=2)  # (L, N + 1, K): what the presence of tier k takes
    drops = np.diff(problem.headroom_ppm, axis=2)
    base = np.cumsum(problem.supply_ps[:, :count, tiers], axis=1)
    debt = np.maximum(-base, 0)
    used = (steps[:, :count] != 0).any(axis=(0, 1)) | (drops != 0).any(axis=(0, 1))
    if tiers and debt.any():
        used[tiers - 1] = True  # says whether anything is accepted
    layers = [k for k in range(tiers) if used[k]]
    rows = _Rows()

    def y(i: int, layer: int) -> int:
        return count + layer * count + i - 1

    for layer, k in enumerate(layers):
        for j in range(count):
            if problem.tier[j] <= k:
                rows.add([j, y(j + 1, layer)], [1.0, -1.0], 0.0)
            if j:
                rows.add([y(j, layer), y(j + 1, layer)], [1.0, -1.0], 0.0)

    closes_us = np.cumsum(problem.length_us)[:count]
    accept = np.arange(count)
    for piece in range(len(base)):
        for i in range(count):
            cost_ps = problem.work_ps[piece, : i + 1] + problem.load_ppm[piece, : i + 1] * (
                closes_us[i] - closes_us[: i + 1]
            )
            columns, amounts = [accept[: i + 1]], [cost_ps]
            for layer, k in enumerate(layers):
                columns.append(np.arange(y(1, layer), y(i, layer) + 1))
                amounts.append(steps[piece, 1 : i + 1, k])
            if debt[piece, i]:
                columns.append(np.array([y(i + 1, len(layers) - 1)]))
                amounts.append(debt[piece, i : i + 1])
            limit = float(base[piece, i] + debt[piece, i])
            rows.add(np.concatenate(columns), np.concatenate(amounts) / PS_PER_UNIT, limit / PS_PER_UNIT)
        headroom = problem.headroom_ppm[piece]
        for i in range(1, count + 1):
            if i < count and np.all(headroom[i + 1] <= headroom[i]):
                continue  # what interval i + 1 demands includes this
            present = [y(i, layer) for layer in range(len(layers))]
            amounts = [problem.load_ppm[piece, :i], drops[piece, i, layers]]
            limit = max(float(headroom[i, tiers]), 0.0)
            rows.add(np.append(accept[:i], present), np.concatenate(amounts) / PPM_PER_UNIT, limit / PPM_PER_UNIT)
    for i in range(count + 1):
        if i == count or problem.free_blocks[i + 1] > problem.free_blocks[i]:
            held = problem.blocks[: i + 1]
            rows.add(accept[: len(held)], held, max(float(problem.free_blocks[i]), 0.0))
    for chosen in excluded:
        members = list(chosen)
        rows.add(members, np.ones(len(members)), len(members) - 1.0)

    width = count + len(layers) * count
    cost, low, high = np.zeros(width), np.zeros(width), np.ones(width)
    cost[:count] = problem.value
    low[:count] = problem.mandatory
    high[: _barred(problem)] = 0.0
    return AdmissionArrays(cost, low, high, tuple(rows.index), tuple(rows.coefficient), np.array(rows.upper), count)


class _Rows:
    """Rows so far, without those that no 0-1 point can break."""

    def __init__(self) -> None:
        self.index: list[NDArray[np.int64]] = []
        self.coefficient: list[FloatArray] = []
        self.upper: list[float] = []

    def add(self, index: ArrayLike, coefficient: ArrayLike, limit: float) -> None:
        columns, amounts = np.asarray(index, dtype=np.int64), np.asarray(coefficient, dtype=np.float64)
        if np.maximum(amounts, 0.0).sum() > limit:
            self.index.append(columns[amounts != 0])
            self.coefficient.append(amounts[amounts != 0])
            self.upper.append(limit)


def _barred(problem: AdmissionProblem) -> int:
    """First candidates that nothing can be accepted of: running decodes alone are too much in a later interval."""
    count, tiers = problem.num_candidates, problem.num_tiers
    overloaded = np.flatnonzero((problem.headroom_ppm[:, :, tiers] < 0).any(axis=0))
    overfull = np.flatnonzero(problem.free_blocks < 0)
    barred = 0
    if len(overloaded):
        barred = int(overloaded[-1])  # demanded of interval i if some j < i is accepted
    if len(overfull):
        barred = max(barred, int(overfull[-1]) + 1)  # if some j <= i is
    return min(barred, count)
