"""Least squares without negative coefficients, for a handful of columns."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TOLERANCE = 1e-10


def solve_nonnegative(normal: Floats, right: Floats) -> Floats:
    """Minimise ``x' normal x / 2 - right' x`` over ``x >= 0``.

    Parameters
    ----------
    normal : array of shape (p, p)
        Symmetric, positive definite.
    right : array of shape (p,)

    Returns
    -------
    array of shape (p,)

    References
    ----------
    Lawson, Hanson: Solving Least Squares Problems (1974), algorithm NNLS (23.10), on the normal equations.
    """
    size = len(right)
    solution = np.asarray(np.linalg.solve(normal, right), dtype=np.float64)
    if (solution >= 0).all():
        return solution
    # Start from the columns that the free solution likes; usually one step from the answer.
    passive = solution > 0
    solution = np.zeros(size)
    for _ in range(6 * size):
        _settle(normal, right, passive, solution)
        gradient = right - normal @ solution
        gradient[passive] = -np.inf
        best = int(gradient.argmax())
        if gradient[best] <= _TOLERANCE * max(1.0, float(np.abs(right).max())):
            break
        passive[best] = True
    return solution


def _settle(normal: Floats, right: Floats, passive: NDArray[np.bool_], solution: Floats) -> None:
    """Best solution over the passive columns, in place; those that would turn negative leave the set."""
    while passive.any():
        chosen = np.flatnonzero(passive)
        wanted = np.linalg.solve(normal[np.ix_(chosen, chosen)], right[chosen])
        bad = wanted <= 0
        if not bad.any():
            solution[:] = 0.0
            solution[chosen] = wanted
            return
        now = solution[chosen]
        steps = now[bad] / np.maximum(now[bad] - wanted[bad], 1e-300)
        step = float(steps.min())
        moved = now + step * (wanted - now)
        leaving = bad & (moved <= _TOLERANCE)
        solution[:] = 0.0
        solution[chosen] = np.where(leaving, 0.0, np.maximum(moved, 0.0))
        passive[chosen[leaving]] = False
    solution[:] = 0.0
