"""What is proved of fleets before one is chosen: cuts that hold for all of them, and the cheapest one that they leave.

See formulations/README.md, least fleet.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOLERANCE = 1e-6  # of a request: attained requests are whole, bounds are floats


@dataclass(frozen=True, slots=True)
class FleetCut:
    """An upper bound on attained requests, linear in the fleet: ``constant + per_replica @ counts``.

    Parameters
    ----------
    constant : float
        Requests that are attained at no charge.
    per_replica : tuple of float
        Requests that one replica more of each engine type adds at most; none is negative.
    """

    constant: float
    per_replica: tuple[float, ...]

    def most(self, counts: Sequence[float]) -> float:
        """Most requests that the fleet can attain."""
        return self.constant + math.fsum(gain * count for gain, count in zip(self.per_replica, counts, strict=True))


@dataclass(frozen=True, slots=True)
class FleetPart:
    """Requests that are bounded together: a whole trace, or those that arrive in one period.

    Parameters
    ----------
    servable : float
        Most of them that any fleet can attain.
    cuts : tuple of FleetCut
        What is proved besides; all of them hold.
    """

    servable: float
    cuts: tuple[FleetCut, ...] = ()

    def most(self, counts: Sequence[float]) -> float:
        """Most of its requests that the fleet can attain."""
        return min([self.servable, *(cut.most(counts) for cut in self.cuts)])


def attained_most(parts: Sequence[FleetPart], counts: Sequence[float]) -> float:
    """Most requests that the fleet can attain, all of it being there for each part."""
    return math.fsum(part.most(counts) for part in parts)


def cheapest_fleet(
    parts: Sequence[FleetPart], needed: int, prices: Sequence[float], limits: Sequence[int]
) -> tuple[int, ...] | None:
    """The cheapest fleet that the cuts do not exclude; every cheaper one within the limits is proved to be too small.

    An exact search: whole counts of all types but the last, and the least of the last by bisection, since what a fleet
    can attain never falls as it grows.

    Parameters
    ----------
    parts : sequence of FleetPart
        What is proved, apart for each.
    needed : int
        Requests that must be attained in all.
    prices : sequence of float
        Of one replica of each type (> 0).
    limits : sequence of int
        Most replicas of each type.

    Returns
    -------
    tuple of int or None
        Replicas by type; None if all fleets within the limits are excluded.
    """
    best: tuple[int, ...] | None = None
    best_price = math.inf

    def enough(counts: Sequence[int]) -> bool:
        return attained_most(parts, counts) >= needed - TOLERANCE

    def extend(chosen: tuple[int, ...], price: float) -> None:
        nonlocal best, best_price
        kind = len(chosen)
        if kind == len(prices) - 1:
            last = least_count(lambda count: enough((*chosen, count)), limits[kind])
            if last is not None and price + last * prices[kind] < best_price:
                best, best_price = (*chosen, last), price + last * prices[kind]
            return
        for count in range(limits[kind] + 1):
            if price + count * prices[kind] >= best_price:
                return
            extend((*chosen, count), price + count * prices[kind])

    extend((), 0.0)
    return best


def least_count(enough: Callable[[int], bool], limit: int) -> int | None:
    """Least count in ``0..limit`` that is enough, where more never is less; None if `limit` is not."""
    if not enough(limit):
        return None
    low, high = -1, limit
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
