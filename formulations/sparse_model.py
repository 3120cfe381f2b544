"""A linear model as growing arrays, handed to HiGHS in one piece."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class SparseModel:
    """Maximise ``cost @ x`` subject to ``row_lower <= A x <= row_upper`` and ``lower <= x <= upper``."""

    def __init__(self) -> None:
        self._cost: list[FloatArray] = []
        self._column_bounds: list[tuple[FloatArray, FloatArray]] = []
        self._row_bounds: list[tuple[FloatArray, FloatArray]] = []
        self._entries: list[tuple[IntArray, IntArray, FloatArray]] = []
        self.num_columns = 0
        self.num_rows = 0

    def columns(self, count: int, upper: ArrayLike, lower: ArrayLike = 0.0, cost: ArrayLike = 0.0) -> IntArray:
        """Add columns; their indices."""
        self._cost.append(np.broadcast_to(np.asarray(cost, float), count))
        self._column_bounds.append(
            (np.broadcast_to(np.asarray(lower, float), count), np.broadcast_to(np.asarray(upper, float), count))
        )
        self.num_columns += count
        return np.arange(self.num_columns - count, self.num_columns)

    def rows(self, count: int, lower: ArrayLike = -np.inf, upper: ArrayLike = np.inf) -> IntArray:
        """Add rows; their indices."""
        self._row_bounds.append(
            (np.broadcast_to(np.asarray(lower, float), count), np.broadcast_to(np.asarray(upper, float), count))
        )
        self.num_rows += count
        return np.arange(self.num_rows - count, self.num_rows)

    def add(self, rows: ArrayLike, columns: ArrayLike, values: ArrayLike) -> None:
        """Add coefficients, broadcast against each other; repeated positions are summed."""
        r, c, v = np.broadcast_arrays(rows, columns, np.asarray(values, float))
        self._entries.append((r.ravel().astype(np.int64), c.ravel().astype(np.int64), v.ravel()))

    def arrays(self) -> "ModelArrays":
        """The model in compressed columns."""
        rows, columns, values = (np.concatenate([entry[k] for entry in self._entries]) for k in range(3))
        keys, inverse = np.unique(columns * self.num_rows + rows, return_inverse=True)
        summed = np.bincount(inverse, weights=values, minlength=len(keys))
        keys, summed = keys[summed != 0], summed[summed != 0]
        start = np.searchsorted(keys, np.arange(self.num_columns + 1) * self.num_rows)
        return ModelArrays(
            cost=np.concatenate(self._cost),
            lower=np.concatenate([bounds[0] for bounds in self._column_bounds]),
            upper=np.concatenate([bounds[1] for bounds in self._column_bounds]),
            row_lower=np.concatenate([bounds[0] for bounds in self._row_bounds]),
            row_upper=np.concatenate([bounds[1] for bounds in self._row_bounds]),
            start=start.astype(np.int64),
            row=(keys % self.num_rows).astype(np.int64),
            value=summed.astype(np.float64),
        )


class ModelArrays:
    """A `SparseModel` in compressed columns.

    Parameters
    ----------
    cost, lower, upper : (n,) float arrays
        Of the columns.
    row_lower, row_upper : (m,) float arrays
        Of the rows.
    start : (n + 1,) int array
        Entries of column j are ``start[j]:start[j + 1]``.
    row, value : (nnz,) arrays
        Row and coefficient of each entry.
    """

    def __init__(
        self,
        cost: FloatArray,
        lower: FloatArray,
        upper: FloatArray,
        row_lower: FloatArray,
        row_upper: FloatArray,
        start: IntArray,
        row: IntArray,
        value: FloatArray,
    ) -> None:
        self.cost, self.lower, self.upper = cost, lower, upper
        self.row_lower, self.row_upper = row_lower, row_upper
        self.start, self.row, self.value = start, row, value
        self.column = np.repeat(np.arange(len(cost)), np.diff(start))

    def transposed_times(self, multipliers: FloatArray) -> FloatArray:
        """``A.T @ multipliers``."""
        weights = self.value * multipliers[self.row]
        return np.asarray(np.bincount(self.column, weights=weights, minlength=len(self.cost)), dtype=np.float64)

    def safe_bound(self, multipliers: FloatArray) -> float:
        """Upper bound on the maximum that holds for any row multipliers, however inexact.

        Wrong signs are clipped; what is left of the reduced costs is charged to the column bounds, which must be
        finite. Weak duality alone makes it valid (Neumaier and Shcherbina, Math. Program. 99, 2004,
        doi:10.1007/s10107-003-0433-3); nothing is taken from the solver but the multipliers.
        """
        y = np.where(np.isfinite(self.row_upper), multipliers, np.minimum(multipliers, 0.0))
        y = np.where(np.isfinite(self.row_lower), y, np.maximum(y, 0.0))
        right_side = np.where(y > 0, self.row_upper, np.where(y < 0, self.row_lower, 0.0))
        reduced = self.cost - self.transposed_times(y)
        best = np.where(reduced > 0, reduced * self.upper, reduced * self.lower)
        total = float(np.sum(y * right_side) + np.sum(best))
        # Rounding of the sums themselves, and of the reduced costs, which cancel.
        magnitude = float(np.sum(np.abs(y * right_side)) + np.sum(np.abs(best)))
        terms = np.bincount(self.column, weights=np.abs(self.value * y[self.row]), minlength=len(self.cost))
        width = np.maximum(np.abs(self.lower), np.abs(self.upper))
        rounding = float(np.sum(np.diff(self.start) * (terms + np.abs(self.cost)) * width))
        return float(total + 1e-12 * magnitude + np.finfo(float).eps * rounding)

    def to_highs(self, integer_columns: IntArray | None = None) -> Any:
        """A `highspy.Highs` that holds the model, silent, as a minimisation of ``-cost @ x``.

        HiGHS 1.13 gives the row duals of a maximisation with one sign from the simplex method and with the other from
        interior points without crossover; those of a minimisation agree. `row_multipliers` takes them from there.
        """
        import highspy

        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.row_lower)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = -self.cost, self.lower, self.upper
        lp.row_lower_, lp.row_upper_ = self.row_lower, self.row_upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = self.start, self.row, self.value
        lp.sense_ = highspy.ObjSense.kMinimize
        if integer_columns is not None:
            kinds = [highspy.HighsVarType.kContinuous] * len(self.cost)
            for column in integer_columns:
                kinds[column] = highspy.HighsVarType.kInteger
            lp.integrality_ = kinds
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.passModel(lp)
        return highs


def row_multipliers(highs: Any) -> FloatArray:
    """(m,) row multipliers that HiGHS has reached on a model of `ModelArrays.to_highs`; empty without any."""
    return -np.asarray(highs.getSolution().row_dual, dtype=np.float64)
