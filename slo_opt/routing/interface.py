"""What a router sees and what it answers: one interface for the fleet simulator and for the live router."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from slo_opt.domain.engine import EngineModel
from slo_opt.policies.interface import Job, RoundEnd


class Role(StrEnum):
    """What a replica does.

    Attributes
    ----------
    BOTH
        Prefill and decode, co-located.
    PREFILL
        Prompts up to their first token; the KV cache then moves to a decode replica.
    DECODE
        Everything after the first token.
    """

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(slots=True, eq=False)
class ReplicaView:
    """One replica as the router knows it: what it sent there, what came back, and what the engine last reported.

    The owner of the view keeps it up to date and may hand out the same object again; policies only read it.

    Parameters
    ----------
    id : str
        Unique in the fleet; policies keep what they remember of a replica by it.
    engine : EngineModel
        Batch times and limits, as believed.
    role : Role
        What it does.
    running : list of Job
        Those that hold KV blocks, in the order in which they began.
    waiting : list of Job
        Those sent there that hold none yet, by arrival.
    free_kv_blocks : int
        Blocks free.
    batch_ends_s : float
        When the batch under way is expected to end; in the past if none is.
    version : int
        Larger whenever anything above has changed: what a policy derives from a view it may keep under
        ``(id, version)``.
    """

    id: str
    engine: EngineModel
    role: Role = Role.BOTH
    running: list[Job] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    free_kv_blocks: int = 0
    batch_ends_s: float = -math.inf
    version: int = 0

    @property
    def num_requests(self) -> int:
        """Requests in it."""
        return len(self.running) + len(self.waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is in it."""
        return not (self.running or self.waiting)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes.

    Parameters
    ----------
    replica : str or None
        Id of one of the replicas offered; None: it is held back by the router and asked about again at `wake_s`.
    best_effort : bool
        Whether it goes there without a promise: served with what is left over.
    wake_s : float
        Of a request that is held: when to ask again, later than now. It is asked about earlier where a replica joins.
    """

    replica: str | None
    best_effort: bool = False
    wake_s: float = math.inf


class RoutingPolicy(Protocol):
    """Chooses a replica for each request.

    No clock, no input or output: equal calls in equal order give equal answers. Called once for each round of a
    request at its release; again, with that replica no longer offered, when a replica refuses it or fails before its
    first token; again at `Placement.wake_s`; and, between replicas that prefill and replicas that decode, at its first
    token.
    """

    name: str

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """Choose.

        Parameters
        ----------
        job : Job
            The request, not yet in any view. ``job.standing`` is best effort if it is under no SLO;
            ``job.decoding`` is true where its prompt has been prefilled elsewhere.
        replicas : sequence of ReplicaView
            Those that can take it now: ready, not draining, of the right role, large enough, and not among those that
            refused it. At least one; in an order that does not change while the fleet does not.
        now_s : float
            The moment.
        """

    def observe(self, end: RoundEnd) -> None:
        """Learn from a round that ended, wherever it did."""
