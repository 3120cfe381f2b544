"""What the simulation of a fleet leaves behind."""

from dataclasses import dataclass
from functools import cached_property

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.fleet import Fleet
from slo_opt.routing.interface import Role
from slo_opt.simulate.run import Run


@dataclass(frozen=True, slots=True)
class Stay:
    """One replica, and how long it was paid for.

    Parameters
    ----------
    id : str
        Its name.
    engine : EngineModel
        What it ran.
    role : Role
        What it did.
    since_s, until_s : float
        From when it was asked for until it left; infinite where it stayed to the end.
    """

    id: str
    engine: EngineModel
    role: Role
    since_s: float
    until_s: float


@dataclass(frozen=True)
class FleetRun(Run):
    """One router and its fleet on one instance.

    Parameters
    ----------
    router : str
        Name of the router.
    fleet : Fleet
        Replicas as the checker needs them, by their number in the schedule.
    stays : tuple of Stay
        The same replicas, as they are paid for.
    num_hops : int
        Requests that a replica refused, or lost without a token, and that went elsewhere.
    num_transfers : int
        KV caches moved from a replica that prefills to one that decodes.
    failed : tuple of int
        Requests lost with a replica after the first token of a round.
    """

    router: str
    fleet: Fleet
    stays: tuple[Stay, ...]
    num_hops: int
    num_transfers: int
    failed: tuple[int, ...]

    @property
    def replica_s(self) -> float:
        """Seconds of all replicas together, from the first arrival to the end of the run or the last arrival."""
        requests = self.instance.requests
        first_s, last_s = requests[0].arrival_s, max(self.end_s, requests[-1].arrival_s)
        return sum(max(0.0, min(stay.until_s, last_s) - max(stay.since_s, first_s)) for stay in self.stays)

    @property
    def kv_blocks(self) -> int:
        """KV blocks of the largest replica."""
        return max(replica.engine.kv_blocks for replica in self.fleet.replicas)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The schedule as the independent checker scores it."""
        return evaluate(self.instance, self.schedule, self.fleet)
