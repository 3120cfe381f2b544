"""How many replicas are needed, from how hard pressed each of them is."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError

PRESSURE = "slo_opt_pressure"


@dataclass(frozen=True, slots=True)
class Interval:
    """What one replica did between two looks at it.

    Parameters
    ----------
    batches : float
        Batches that ended.
    busy_s : float
        Seconds that they took together.
    decided : float
        Requests under an SLO that were promised to be on time, or were not.
    declined : float
        Of those, the ones that were not, or whose promise was given up.
    kv_share : float
        Share of the KV cache in use at its end, in [0, 1].
    tightest_tpot_s : float
        Of the requests in it; infinite where none is under an SLO.
    """

    batches: float = 0.0
    busy_s: float = 0.0
    decided: float = 0.0
    declined: float = 0.0
    kv_share: float = 0.0
    tightest_tpot_s: float = math.inf


def pressure(interval: Interval) -> float:
    """Share of what a replica can serve on time that is asked of it; above 1 it is asked for too much.

    The largest of: the mean batch over the tightest TPOT in it; the share of its KV cache in use; and, where requests
    were declined, 1 and the share of them.

    Notes
    -----
    The first is the local back-pressure of Chiron, arXiv 2501.08090; what is declined takes the place of its falling
    throughput, since a planner that keeps its promises declines before it falls.
    """
    found = min(1.0, max(0.0, interval.kv_share))
    if interval.batches > 0:
        found = max(found, interval.busy_s / interval.batches / interval.tightest_tpot_s)
    if interval.declined > 0:
        found = max(found, 1.0 + min(1.0, interval.declined / max(interval.decided, interval.declined)))
    return found


@dataclass(frozen=True, slots=True)
class Demand:
    """A rule for the number of replicas.

    Parameters
    ----------
    high : float
        There are so many that the mean pressure is at most this.
    low : float
        There are fewer only if the mean pressure of the rest would be at most this.

    Raises
    ------
    InvalidInputError
        Not ``0 < low <= high``.
    """

    high: float = 0.9
    low: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise InvalidInputError(f"low is {self.low} and high {self.high}; expected 0 < low <= high")

    def replicas_needed(self, pressures: Collection[float], held: float, current: int) -> int:
        """How many are needed, at least 1.

        Parameters
        ----------
        pressures : collection of float
            Of each replica that tells.
        held : float
            Requests that routers hold back: they fit nowhere, so one replica more is needed.
        current : int
            Replicas that there are, starting ones included.
        """
        if not pressures:
            return max(1, current)
        total = sum(pressures)
        most = max(_least(total / self.high), len(pressures) + 1 if held >= 1 else 1)
        if most >= current:
            return most
        return min(current, max(most, _least(total / self.low)))


def _least(replicas: float) -> int:
    return max(1, math.ceil(round(replicas, 9)))
