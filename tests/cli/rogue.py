"""Policies that do what no policy may do, or do nothing."""

from slo_opt.policies.interface import Allocation, EngineSnapshot
from slo_opt.policies.registry import PolicyContext


class Greedy:
    """Schedules more tokens than the prompt has."""

    name = "greedy"

    def __init__(self, context: PolicyContext) -> None:
        pass

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """One token too many."""
        job = snapshot.waiting[0]
        return Allocation([(job, job.left_tokens + 1)])


class Sleeper:
    """Serves nobody."""

    name = "sleeper"

    def __init__(self, context: PolicyContext) -> None:
        pass

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """An empty batch."""
        return Allocation()


class Interrupted(Sleeper):
    """Ctrl-C in the middle of a run."""

    name = "interrupted"

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """Never returns."""
        raise KeyboardInterrupt
