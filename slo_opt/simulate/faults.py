"""What can go wrong with a replica while it serves: it fails, it slows down, or the router cannot reach it."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from slo_opt.domain.errors import InvalidInputError


class FaultKind(StrEnum):
    """Kinds of faults.

    Attributes
    ----------
    FAIL
        It stops at once. The batch under way yields nothing and all KV is lost. Requests without a token of their round
        go to other replicas, the others are lost. It comes back empty, with a fresh policy.
    SLOW
        Batches that begin meanwhile take `Fault.factor` times as long; neither router nor policy is told.
    CUT_OFF
        The router does not reach it: no new requests, no reports. It goes on with what it has, and its tokens reach the
        client when it is found again; KV is moved to and from it all the same, once the router knows of it.
    """

    FAIL = "fail"
    SLOW = "slow"
    CUT_OFF = "cut-off"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one replica.

    Parameters
    ----------
    kind : FaultKind
        What happens.
    replica : int
        Number of the replica in the fleet as it begins.
    at_s : float
        When, seconds from the start of the trace.
    for_s : float
        How long; infinite for a failure without recovery.
    factor : float
        Of `FaultKind.SLOW`: how much longer batches take.

    Raises
    ------
    InvalidInputError
        A figure means nothing.
    """

    kind: FaultKind
    replica: int
    at_s: float
    for_s: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.at_s) and self.at_s >= 0):
            raise InvalidInputError(f"fault: at_s is {self.at_s}; expected seconds >= 0 from the start of the trace")
        if not self.for_s > 0 or (self.for_s == math.inf and self.kind is not FaultKind.FAIL):
            raise InvalidInputError(
                f"fault: for_s is {self.for_s}; expected seconds above 0, infinite only for a failure"
            )
        if not 0.1 <= self.factor <= 1000:
            raise InvalidInputError(f"fault: factor is {self.factor}; expected a number in [0.1, 1000]")

    @property
    def until_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s


def check_faults(faults: Iterable[Fault], num_replicas: int) -> None:
    """Refuse faults of replicas that are not there, and two at a time on one replica.

    Raises
    ------
    InvalidInputError
        There is such a fault.
    """
    by_replica: dict[int, list[Fault]] = defaultdict(list)
    for fault in faults:
        if not 0 <= fault.replica < num_replicas:
            raise InvalidInputError(
                f"fault on replica {fault.replica}; the fleet begins with {num_replicas}, from 0 on"
            )
        by_replica[fault.replica].append(fault)
    for number, found in by_replica.items():
        found.sort(key=lambda fault: fault.at_s)
        for first, second in pairwise(found):
            if second.at_s < first.until_s:
                raise InvalidInputError(
                    f"faults on replica {number}: one at {second.at_s} s begins before that of {first.at_s} s is over; "
                    "give them one after the other"
                )
