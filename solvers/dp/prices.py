"""Prices that make the Lagrangian bound tight, without a linear program: subgradient steps.

Steps are Polyak's with a target just above the incumbent, along subgradients deflected so as not to undo the step
before. Any non-negative prices give a valid bound; the better ones certify the incumbent at once.

References
----------
B. T. Polyak, Minimization of unsmooth functionals, USSR Comput. Math. 9(3), 1969. P. Camerini, L. Fratta, F. Maffioli,
On improving relaxation methods by modified gradient techniques, Math. Programming Study 3, 1975.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.dp.bounds import FloatArray, Prices, derive, maximiser, rounding
from slo_opt.solvers.dp.tables import Tables

PATIENCE = 4  # steps without progress before the step length is halved
PROGRESS = 0.002  # of a quantum of value
AIM = 0.5  # steps are meant for a bound this many quanta above the incumbent
SHORTEST = 0.01  # step length at which prices count as settled


@njit(cache=True)
def units(problem: Tables) -> FloatArray:
    """Scale of each resource, ``(R,)``: a mean candidate takes about one."""
    count, resources = problem.use.shape
    unit = np.ones(resources)
    for i in range(count):
        for r in range(resources):
            unit[r] += problem.use[i, r]
    return count / unit


@njit(cache=True)
def tighten(problem: Tables, prices: Prices, chosen: NDArray[np.bool_], incumbent: int, max_steps: int) -> float:
    """Improve the prices until the incumbent is proved optimal, or progress ends.

    Parameters
    ----------
    prices : Prices
        Changed in place; the best prices met, and what follows from them, are left in it.
    chosen : (N,) bool array
        Filled with the last set that attained the bound.
    incumbent : int
        Value of the best set known.
    max_steps : int
        Most steps.

    Returns
    -------
    float
        Valid upper bound on the value of any feasible set.
    """
    price = prices.price
    length, priced = price.shape
    best = price.copy()
    left = np.zeros((length, priced))
    direction = np.zeros((length, priced))
    unit = units(problem)
    quantum = problem.quantum
    least, relax, idle_steps, before = np.inf, 1.0, 0, 0.0
    for _ in range(max_steps):
        bound = derive(problem, prices)
        idle_steps = 0 if bound < least - PROGRESS * quantum else idle_steps + 1
        if idle_steps == PATIENCE:
            relax *= 0.5
            idle_steps = 0
        if bound < least:
            least = bound
            best[:] = price
        if relax < SHORTEST or least < incumbent + quantum:
            break
        maximiser(problem, prices, left, chosen)
        own, mixed = 0.0, 0.0
        for i in range(length):
            for r in range(priced):
                slack = left[i, r] * unit[r] if left[i, r] < 0.0 or price[i, r] > 0.0 else 0.0
                left[i, r] = slack
                own += slack * slack
                mixed += slack * direction[i, r]
        deflection = -mixed / before if mixed < 0.0 else 0.0
        norm = own + deflection * (2.0 * mixed + deflection * before)
        if norm <= 0.0:
            break
        step = relax * (bound - incumbent - AIM * quantum) / norm
        for i in range(length):
            for r in range(priced):
                direction[i, r] = left[i, r] + deflection * direction[i, r]
                price[i, r] = max(0.0, price[i, r] - step * unit[r] * direction[i, r])
        before = norm
    price[:] = best
    return derive(problem, prices) + rounding(problem, prices)
