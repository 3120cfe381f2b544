"""Whom to serve, as the fluid relaxation sees it: it weighs all requests of a trace against each other at once."""

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import SolverNotAvailableError
from slo_opt.domain.instance import Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import choose_grid
from slo_opt.formulations.fluid_highs import build_fluid
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.versions import require


def relaxed_acceptance(instance: Instance, time_limit_s: float) -> NDArray[np.float64] | None:
    """Share of each request that an optimum of the fluid relaxation serves.

    None if the limit came first, or if HiGHS is missing or a version that gives wrong answers.

    Parameters
    ----------
    instance : Instance
        A trace.
    time_limit_s : float
        For the linear program.

    Returns
    -------
    (N,) float array in [0, 1] or None
        A hint, nothing proved.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C; there is nothing to give back yet.
    """
    try:
        require("highspy")
    except SolverNotAvailableError:
        return None
    import highspy

    prefills, decodes = attainable_work(instance)
    if not prefills:
        return None
    model = build_fluid(instance, choose_grid(prefills, decodes))
    highs = model.arrays.to_highs()
    options = {"solver": "ipm", "run_crossover": "off", "threads": 1, "time_limit": time_limit_s}
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.HandleUserInterrupt = True  # without it HiGHS does not look at cancelSolve
    _, stopped = run_stoppable(highs.run, highs.cancelSolve)
    if stopped:
        raise KeyboardInterrupt
    if highs.getModelStatus() == highspy.HighsModelStatus.kTimeLimit:
        return None
    point = np.asarray(highs.getSolution().col_value, dtype=np.float64)
    share = np.zeros(len(instance.requests))
    share[list(model.accept)] = point[list(model.accept.values())]
    return np.clip(share, 0.0, 1.0)
