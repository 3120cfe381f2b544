"""One run of HiGHS on arrays: options, log to stderr, Ctrl-C, and what it found and proved."""

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.stoppable import run_stoppable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HighsOutcome:
    """What HiGHS says.

    Parameters
    ----------
    termination : Termination
        Why it stopped.
    point : (C,) float array or None
        Feasible point, None if there is none.
    dual : float or None
        Bound on the objective in the model's own sense; None if not proved.
    nodes, iterations : int
        Branch-and-bound nodes and simplex iterations.
    """

    termination: Termination
    point: FloatArray | None
    dual: float | None
    nodes: int
    iterations: int


def mip_options(config: SolverConfig, time_left_s: float | None) -> dict[str, Any]:
    """Options of HiGHS for an objective that is an integer: a gap below 1 closes it."""
    options: dict[str, Any] = {
        "mip_rel_gap": config.relative_gap,
        "mip_abs_gap": 0.999,
        "threads": config.threads,
        "random_seed": config.seed,
        "parallel": "on" if config.threads > 1 else "off",
    }
    if time_left_s is not None:
        options["time_limit"] = time_left_s
    return options


def log_to_stderr(highs: Any, config: SolverConfig) -> None:
    """Let HiGHS log to stderr, or not at all."""
    highs.silent(not config.log)
    if config.log:
        highs.setOptionValue("log_to_console", False)
        highs.setOptionValue("log_file", os.devnull)  # HiGHS calls back only if it logs somewhere
        highs.cbLogging += lambda event: sys.stderr.write(event.message)


def run_highs(highs: Any, config: SolverConfig, time_left_s: float | None) -> HighsOutcome:
    """Set the options, run, and read the outcome.

    Parameters
    ----------
    highs : highspy.Highs
        Holds the model.
    config : SolverConfig
        Gap, seed, threads, log and progress.
    time_left_s : float or None
        Wall-clock limit of this run.
    """
    import highspy

    log_to_stderr(highs, config)
    for name, value in mip_options(config, time_left_s).items():
        highs.setOptionValue(name, value)
    highs.HandleUserInterrupt = True

    def tick(gone_s: float) -> None:
        if config.progress is not None:
            config.progress("HiGHS branch and bound", gone_s / time_left_s if time_left_s else None)

    _, stopped = run_stoppable(highs.run, highs.cancelSolve, tick)
    status, info = highs.getModelStatus(), highs.getInfo()
    kinds = highspy.HighsModelStatus
    termination = {
        kinds.kOptimal: Termination.OPTIMAL,
        kinds.kInfeasible: Termination.INFEASIBLE,
        kinds.kTimeLimit: Termination.TIME_LIMIT,
        kinds.kInterrupt: Termination.INTERRUPTED,
        kinds.kSolutionLimit: Termination.OTHER_LIMIT,
        kinds.kIterationLimit: Termination.OTHER_LIMIT,
        kinds.kModelEmpty: Termination.OPTIMAL,
    }.get(status, Termination.ERROR)
    if stopped and termination in (Termination.ERROR, Termination.OTHER_LIMIT):
        termination = Termination.INTERRUPTED
    found = status == kinds.kModelEmpty or int(info.primal_solution_status) == 2
    point = np.array(highs.getSolution().col_value) if found else None
    dual = float(info.mip_dual_bound) if info.valid and info.mip_node_count >= 0 else None
    return HighsOutcome(termination, point, dual, max(int(info.mip_node_count), 0), int(info.simplex_iteration_count))
