"""Settings of CP-SAT that every model here runs under."""

import sys
from typing import Any

from slo_opt.solvers.interface import SolverConfig


def set_parameters(solver: Any, config: SolverConfig, time_left_s: float | None) -> None:
    """Limits, seed, threads, log to stderr, and the presolve step that loses optima switched off.

    OR-Tools 9.15 can drop the enforcement literal of a linear row in presolve and then prove a wrong optimum
    (google/or-tools issue 5293; mended on its main branch by pull request 5294). On small random admission
    plans it did so in about one of 130. A work limit of 0 for inclusions leaves that step out.

    Parameters
    ----------
    solver : ortools.sat.python.cp_model.CpSolver
        Whose parameters are set.
    config : SolverConfig
        Gap, seed, threads and log.
    time_left_s : float or None
        Wall-clock limit of this run.
    """
    parameters = solver.parameters
    parameters.presolve_inclusion_work_limit = 0
    parameters.num_workers = config.threads
    parameters.random_seed = config.seed
    parameters.relative_gap_limit = config.relative_gap
    parameters.catch_sigint_signal = False
    if time_left_s is not None:
        parameters.max_time_in_seconds = max(time_left_s, 0.0)
    if config.log:
        parameters.log_search_progress = True
        parameters.log_to_stdout = False
        solver.log_callback = lambda line: sys.stderr.write(line + "\n")
