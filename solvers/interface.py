"""What every solver takes and gives back.

Why it stopped, what came back and what is proved are three answers, as in MathOptInterface and OR-Tools MathOpt.
Limits and infeasibility are results, not exceptions.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule


class Termination(StrEnum):
    """Why a solver stopped."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    TIME_LIMIT = "time-limit"
    OTHER_LIMIT = "other-limit"
    INTERRUPTED = "interrupted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SolverConfig:
    """Limits and switches common to all solvers.

    Parameters
    ----------
    time_limit_s : float or None
        Wall-clock limit.
    relative_gap : float
        Stop when ``(dual - primal) / max(1, |primal|)`` is at most this.
    seed, threads : int
        Random seed and threads.
    log : bool
        Whether the solver writes its log to stderr.
    progress : callable or None
        Called now and then with a phrase (what is being done) and the share done in [0, 1], or None if not known.
    stop : threading.Event or None
        Set by another thread to ask the solver to return what it has, as Ctrl-C does in the main thread.
    """

    time_limit_s: float | None = None
    relative_gap: float = 0.0
    seed: int = 0
    threads: int = 1
    log: bool = False
    progress: Callable[[str, float | None], None] | None = None
    stop: threading.Event | None = None


@dataclass(frozen=True, slots=True)
class ObjectiveBounds:
    """What is proved about a maximum: ``primal <= optimum <= dual``; None for what is not proved."""

    primal: float | None = None
    dual: float | None = None

    def gap(self) -> float | None:
        """``(dual - primal) / dual``, the share of the bound that is not reached; None if either is missing."""
        if self.primal is None or self.dual is None:
            return None
        return 0.0 if self.dual <= self.primal else (self.dual - self.primal) / self.dual


@dataclass(frozen=True, slots=True)
class SolveStats:
    """What the solve took.

    Parameters
    ----------
    wall_s : float
        Seconds.
    versions : dict of str to str
        Solver and its version.
    detail : dict of str to float
        Backend's own counts: nodes, labels, columns, iterations.
    """

    wall_s: float
    versions: dict[str, str]
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdmissionResult:
    """Result on an `AdmissionProblem`. `accepted` is feasible by `AdmissionProblem.check`, or None."""

    termination: Termination
    accepted: tuple[int, ...] | None
    bounds: ObjectiveBounds
    stats: SolveStats


@dataclass(frozen=True, slots=True)
class ScheduleResult:
    """Result on an `Instance`. `schedule` has passed `evaluate` without violations, or is None (bounds only)."""

    termination: Termination
    schedule: Schedule | None
    bounds: ObjectiveBounds
    stats: SolveStats


class AdmissionSolver(Protocol):
    """Solves level 2."""

    name: str

    def solve(self, problem: AdmissionProblem, config: SolverConfig) -> AdmissionResult:
        """Best set of candidates to accept."""


class ScheduleSolver(Protocol):
    """Solves or bounds levels 1 and 3."""

    name: str

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Best schedule found, and what is proved about the best possible."""
