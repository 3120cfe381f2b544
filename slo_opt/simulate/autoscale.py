"""What an autoscaler sees and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from slo_opt.policies.interface import Job
from slo_opt.routing.interface import ReplicaView


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica did since the autoscaler was last asked.

    Parameters
    ----------
    num_batches, num_tokens : int
        Batches that ended, and tokens scheduled in them.
    busy_s : float
        Seconds that they took.
    """

    num_batches: int = 0
    num_tokens: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetState:
    """A fleet at one moment.

    Parameters
    ----------
    now_s : float
        The moment.
    replicas : sequence of ReplicaView
        Those that take requests, as the router knows them; whoever drains, starts or has failed is left out.
    served : mapping of str to Served
        By id, what each of them did.
    num_starting : int
        Replicas that have been asked for and are not there yet.
    held : sequence of Job
        Requests that no replica has got yet, the one that waits longest first.
    """

    now_s: float
    replicas: Sequence[ReplicaView]
    served: Mapping[str, Served]
    num_starting: int
    held: Sequence[Job]


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How a fleet changes.

    Parameters
    ----------
    start : int
        Replicas to ask for.
    drain : tuple of str
        Ids of replicas that get no further requests and leave when they are empty.
    """

    start: int = 0
    drain: tuple[str, ...] = ()


class Autoscaler(Protocol):
    """Decides how many replicas there are. No clock, no input or output; asked at a fixed interval."""

    name: str

    def scale(self, state: FleetState) -> ScalingDecision:
        """Start, drain, or neither."""
