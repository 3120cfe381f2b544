"""Solvers that end in each of the ways a solver can end."""

from slo_opt.domain.errors import SolverNotAvailableError
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination


def _nothing(termination: Termination, dual: float | None = None) -> ScheduleResult:
    return ScheduleResult(termination, None, ObjectiveBounds(dual=dual), SolveStats(0.0, {}))


class Infeasible:
    """Proves that there is no schedule."""

    name = "infeasible"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """No schedule."""
        return _nothing(Termination.INFEASIBLE)


class OutOfTime:
    """Reaches its limit with nothing in hand."""

    name = "out-of-time"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Nothing."""
        return _nothing(Termination.TIME_LIMIT)


class Interrupted:
    """The user presses Ctrl-C."""

    name = "interrupted"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Raise as the interpreter does."""
        raise KeyboardInterrupt


class Broken:
    """A defect."""

    name = "broken"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Divide by zero."""
        raise ZeroDivisionError("division by zero")


class Missing:
    """A backend whose library is not installed."""

    name = "missing"

    def __init__(self) -> None:
        raise SolverNotAvailableError("ortools (not installed): pip install 'slo-opt[exact]'")


class Cheating:
    """Returns a schedule that overlaps itself and claims to be optimal."""

    name = "cheating"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """All prompts at time 0."""
        batches = [Batch(0.0, (i,), (request.prompt_tokens,)) for i, request in enumerate(instance.requests)]
        schedule = Schedule.from_batches(batches, range(len(batches)))
        bounds = ObjectiveBounds(float(len(batches)), float(len(batches)))
        return ScheduleResult(Termination.OPTIMAL, schedule, bounds, SolveStats(0.0, {}))


class TooLow:
    """Claims a bound below what is possible."""

    name = "too-low"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Nobody can attain more than one."""
        return _nothing(Termination.OPTIMAL, dual=1.0)
