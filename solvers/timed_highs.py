"""Several runs of HiGHS under one time limit, stopped together."""

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from slo_opt.solvers.highs_run import log_to_stderr
from slo_opt.solvers.interface import SolverConfig


@dataclass(slots=True)
class TimedHighs:
    """The clock of one solve, and the HiGHS objects at work.

    Parameters
    ----------
    config : SolverConfig
        Time limit, seed, log and progress.
    """

    config: SolverConfig
    began_s: float = field(default_factory=time.perf_counter)
    active: list[Any] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def wall_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began_s

    def left_s(self) -> float:
        """Seconds left; infinite without a limit."""
        if self.stopped.is_set():
            return 0.0
        limit_s = self.config.time_limit_s
        return math.inf if limit_s is None else limit_s - self.wall_s

    def stop(self) -> None:
        """Ask everything at work to return."""
        self.stopped.set()
        for highs in list(self.active):
            highs.cancelSolve()

    def run(self, highs: Any, **options: Any) -> None:
        """Run HiGHS within the time left.

        Parameters
        ----------
        highs : highspy.Highs
            Holds the model.
        **options
            Of HiGHS; a `time_limit` among them can only shorten the run.
        """
        log_to_stderr(highs, self.config)
        options = {"threads": 1, "random_seed": self.config.seed, **options}
        left_s = min(self.left_s(), options.pop("time_limit", math.inf))
        if math.isfinite(left_s):
            options["time_limit"] = max(left_s, 0.0)
        for name, value in options.items():
            highs.setOptionValue(name, value)
        highs.HandleUserInterrupt = True  # without it HiGHS does not look at cancelSolve
        self.active.append(highs)
        try:
            if not self.stopped.is_set():
                highs.run()
        finally:
            self.active.remove(highs)

    def report(self, what: str, share: float | None = None) -> None:
        """Tell the caller what is being done."""
        if self.config.progress is not None:
            self.config.progress(what, share)
