"""Level 2 as arrays for HiGHS: sparse rows that carry budgets, loads and tiers from interval to interval.

Columns: ``x_j`` (accept candidate ``j``); ``y_{i,k}`` (some accepted ``j < i`` has a tier at most ``k``); the load
``d_{l,i}`` and the budget ``b_{l,i}``. Since supply ascends in the tier, ``supply_i = supply[i, K] - Σ_k (supply[i, k +
1] - supply[i, k]) · y_{i,k}`` is linear, and every row pushes ``y`` and ``d`` down and ``b`` up, so that inequalities
carry them. See formulations/README.md, level 2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slo_opt.domain.admission import AdmissionProblem

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]
PS_PER_UNIT = 1e9  # budgets are in ms: HiGHS' feasibility tolerance of 1e-6 is then 1 ns
PPM_PER_UNIT = 1e3  # and in the rows of shares 0.001 ppm, less than their unit


@dataclass(frozen=True, slots=True)
class AdmissionArrays:
    """``max cost · z, A z <= upper, lower_bound <= z <= upper_bound`` with ``C`` columns, ``R`` rows, ``E`` entries.

    Parameters
    ----------
    cost, lower_bound, upper_bound : (C,) float arrays
        Objective and bounds.
    integer : (C,) bool array
        Integer columns.
    row, column : (E,) int arrays
        Places of the entries, by row.
    coefficient : (E,) float array
        Entries.
    upper : (R,) float array
        Right-hand sides.
    num_candidates : int
        The first so many columns are ``x``.
    """

    cost: FloatArray
    lower_bound: FloatArray
    upper_bound: FloatArray
    integer: NDArray[np.bool_]
    row: IndexArray
    column: IndexArray
    coefficient: FloatArray
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
    The compute rule is demanded of every interval after the first acceptance, not only where a candidate is accepted:
    the same set of plans, because the budget never shrinks between acceptances, and a tighter relaxation.
    """
    count, tiers, pieces = problem.num_candidates, problem.num_tiers, problem.supply_ps.shape[0]
    steps = np.diff(problem.supply_ps, axis=2) / PS_PER_UNIT  # (L, N + 1, K): what the presence of tier k takes
    drops = np.diff(problem.headroom_ppm, axis=2) / PPM_PER_UNIT
    alone = np.cumsum(problem.supply_ps[:, :count, tiers], axis=1)  # the budget while nothing is accepted
    debt = np.maximum(-alone, 0) / PS_PER_UNIT
    used = (steps[:, :count] != 0).any(axis=(0, 1)) | (drops != 0).any(axis=(0, 1))
    if tiers and debt.any():
        used[tiers - 1] = True  # says whether anything is accepted
    layers = np.flatnonzero(used)

    accept = np.arange(count)
    present = count * (1 + np.arange(len(layers))[:, None]) + accept  # [layer, i - 1] for interval i >= 1
    load = count * (1 + len(layers) + np.arange(pieces)[:, None]) + accept  # [piece, i - 1] for interval i >= 1
    budget = count * (1 + len(layers) + pieces + np.arange(pieces)[:, None]) + accept  # [piece, i]
    width = count * (1 + len(layers) + 2 * pieces)
    rows = _Rows()

    for layer, k in enumerate(layers):
        joins = np.flatnonzero(problem.tier <= k)
        rows.add([accept[joins], present[layer, joins]], [1.0, -1.0], np.zeros(len(joins)))
        rows.add([present[layer, :-1], present[layer, 1:]], [1.0, -1.0], np.zeros(max(count - 1, 0)))

    for piece in range(pieces):
        share = problem.load_ppm[piece] / PPM_PER_UNIT
        rows.add([accept[:1], load[piece, :1]], [share[:1], -1.0], np.zeros(min(count, 1)))
        carried = [load[piece, :-1], accept[1:], load[piece, 1:]]
        rows.add(carried, [1.0, share[1:], -1.0], np.zeros(max(count - 1, 0)))

        work = problem.work_ps[piece] / PS_PER_UNIT
        supply = problem.supply_ps[piece, :count, tiers] / PS_PER_UNIT
        rows.add([budget[piece, :1], accept[:1]], [1.0, work[:1]], supply[:1])
        length = problem.length_us[1:count] * (PPM_PER_UNIT / PS_PER_UNIT)
        rows.add(
            [budget[piece, 1:], budget[piece, :-1], accept[1:], load[piece, :-1], *present[:, :-1]],
            [1.0, -1.0, work[1:], length, *steps[piece, 1:count, layers]],
            supply[1:],
        )
        owing = np.flatnonzero(debt[piece])
        if len(owing):
            owed = debt[piece, owing]
            rows.add([budget[piece, owing], present[-1, owing]], [-1.0, owed], owed)

        headroom = problem.headroom_ppm[piece]
        decisive = [i for i in range(1, count + 1) if i == count or np.any(headroom[i + 1] > headroom[i])]
        ends = np.array(decisive, dtype=np.int64)  # what the next interval demands includes the others
        limit = np.maximum(headroom[ends, tiers], 0) / PPM_PER_UNIT
        rows.add([load[piece, ends - 1], *present[:, ends - 1]], [1.0, *drops[piece, ends][:, layers].T], limit)

    for i in range(count + 1):
        if i == count or problem.free_blocks[i + 1] > problem.free_blocks[i]:
            held = problem.blocks[: i + 1].astype(np.float64)
            rows.add_one(accept[: len(held)], held, max(float(problem.free_blocks[i]), 0.0))
    for chosen in excluded:
        members = np.array(list(chosen), dtype=np.int64)
        rows.add_one(members, np.ones(len(members)), len(members) - 1.0)

    cost, low, high = np.zeros(width), np.zeros(width), np.ones(width)
    cost[:count] = problem.value
    low[:count] = problem.mandatory
    high[: _barred(problem)] = 0.0
    high[load.ravel()] = high[budget.ravel()] = np.inf
    low[budget] = -debt
    integer = np.arange(width) < count
    return AdmissionArrays(cost, low, high, integer, *rows.joined(), count)


class _Rows:
    """Rows so far, as blocks of equal shape."""

    def __init__(self) -> None:
        self._row: list[IndexArray] = []
        self._column: list[IndexArray] = []
        self._coefficient: list[FloatArray] = []
        self._upper: list[FloatArray] = []
        self._count = 0

    def add(self, columns: list[IndexArray], coefficients: list[ArrayLike], upper: FloatArray) -> None:
        """Add ``len(upper)`` rows, term by term: one column a row and a coefficient, shared or one a row."""
        for column, coefficient in zip(columns, coefficients, strict=True):
            self._row.append(self._count + np.arange(len(upper)))
            self._column.append(column)
            self._coefficient.append(np.broadcast_to(np.asarray(coefficient, dtype=np.float64), column.shape))
        self._upper.append(upper)
        self._count += len(upper)

    def add_one(self, columns: IndexArray, coefficients: FloatArray, upper: float) -> None:
        """Add one row."""
        self._row.append(np.full(len(columns), self._count))
        self._column.append(columns)
        self._coefficient.append(coefficients)
        self._upper.append(np.array([upper]))
        self._count += 1

    def joined(self) -> tuple[IndexArray, IndexArray, FloatArray, FloatArray]:
        """Row, column and coefficient of the entries, by row, and the right-hand sides."""
        row, column = np.concatenate(self._row), np.concatenate(self._column)
        coefficient = np.concatenate(self._coefficient)
        kept = np.flatnonzero(coefficient)
        order = kept[np.argsort(row[kept], kind="stable")]
        return row[order], column[order], coefficient[order], np.concatenate(self._upper)


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
