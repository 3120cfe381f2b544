"""What happens when in a fleet, and whose policy is to be asked then."""

import heapq
import math
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import count
from typing import Any

_PATIENCE = 1000  # times that the router looks again, the autoscaler is asked or a replica joins, and no request gains


class Rank(IntEnum):
    """Order of what happens at one moment.

    Attributes
    ----------
    BATCH_END, FAULT, JOIN, TRANSFER, DELIVERY, REPORT
        Replicas and what reaches the router from them.
    ARRIVAL
        Requests, and rounds that are released.
    HELD, SCALING
        A request that was held back is looked at again; the autoscaler is asked.
    WAKE
        A policy wanted to be asked again.
    """

    BATCH_END = 0
    FAULT = 1
    JOIN = 2
    TRANSFER = 3
    DELIVERY = 4
    REPORT = 5
    ARRIVAL = 6
    HELD = 7
    SCALING = 8
    WAKE = 9


_POLLS = frozenset({Rank.HELD, Rank.SCALING})
_OF_REQUESTS = frozenset({Rank.BATCH_END, Rank.TRANSFER, Rank.DELIVERY, Rank.ARRIVAL, Rank.WAKE})


class Agenda:
    """Events in order of time; at one moment, by rank, number, and the order in which they were entered.

    Attributes
    ----------
    now_s : float
        The moment.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = count()
        self._num_others = 0  # events that are no polls
        self._in_vain = 0
        self._poked: set[int] = set()

    def at(self, time_s: float, rank: Rank, number: int, act: Callable[..., None], *args: Any) -> None:
        """Enter an event; never, if its time is infinite."""
        if time_s < math.inf:
            heapq.heappush(self._events, (time_s, rank, number, next(self._count), act, args))
            self._num_others += rank not in _POLLS

    def poke(self, number: int) -> None:
        """Have the policy of a replica asked at this moment, once all events of the moment are over."""
        self._poked.add(number)

    def poked(self) -> Iterator[int]:
        """Replicas to be asked, until there is none; asking may poke others."""
        while self._poked:
            numbers = sorted(self._poked)
            self._poked.clear()
            yield from numbers

    def step(self) -> bool:
        """Let everything of the next moment happen; False if nothing will happen any more.

        Nothing will where replicas come and go, or only polls are left, and for long no request has gained by it.
        """
        events = self._events
        if not events or self._in_vain > _PATIENCE:
            return False
        self.now_s = max(self.now_s, events[0][0])
        while events and events[0][0] <= self.now_s:
            _, rank, _, _, act, args = heapq.heappop(events)
            self._num_others -= rank not in _POLLS
            if rank in _OF_REQUESTS:
                self._in_vain = 0
            elif rank == Rank.JOIN or (rank in _POLLS and not self._num_others):
                self._in_vain += 1
            act(*args)
        return True
