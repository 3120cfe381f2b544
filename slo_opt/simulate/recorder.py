"""Batches as they are played, in columns; the schedule that they make."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.schedule import Move, Schedule
from slo_opt.simulate.life import Life


@dataclass(slots=True, eq=False)
class PlayedBatch:
    """A batch under way.

    Parameters
    ----------
    start_s, duration_s : float
        When it began, and how long it takes.
    entries : list of (Life, int)
        Tokens by request.
    dropped : list of Life
        Who lost KV on its replica since the batch before.
    num_begun : int
        Requests that begin with it: the last of those that run.
    num_running, num_waiting : int
        Requests in the replica meanwhile.
    """

    start_s: float
    duration_s: float
    entries: list[tuple[Life, int]]
    dropped: list[Life]
    num_begun: int
    num_running: int
    num_waiting: int


class Recorder:
    """Collects what one or several replicas do.

    Attributes
    ----------
    decision_s : array of float
        Wall-clock seconds of each decision.
    moves : list of Move
        KV that left its replica outside a batch.
    """

    def __init__(self) -> None:
        self.decision_s = array("d")
        self.moves: list[Move] = []
        self._start_s = array("d")
        self._duration_s = array("d")
        self._replica = array("q")
        self._offset = array("q", [0])
        self._request = array("q")
        self._tokens = array("q")
        self._emitted: dict[int, list[int]] = {}
        self._delivered_s: dict[int, float] = {}
        self._preempted: dict[int, tuple[int, ...]] = {}
        self._num_running = array("q")
        self._num_waiting = array("q")

    def __len__(self) -> int:
        """Batches so far."""
        return len(self._start_s)

    def add(self, batch: PlayedBatch, replica: int, emitted: list[int] | None, delivered_s: float | None) -> None:
        """Keep a batch that has ended."""
        number = len(self._start_s)
        if batch.dropped:
            self._preempted[number] = tuple([life.index for life in batch.dropped])
        if emitted is not None:
            self._emitted[number] = emitted
        if delivered_s is not None:
            self._delivered_s[number] = delivered_s
        self._start_s.append(batch.start_s)
        self._duration_s.append(batch.duration_s)
        self._replica.append(replica)
        self._request.extend([life.index for life, _ in batch.entries])
        self._tokens.extend([tokens for _, tokens in batch.entries])
        self._offset.append(len(self._request))
        self._num_running.append(batch.num_running)
        self._num_waiting.append(batch.num_waiting)

    @property
    def end_s(self) -> float:
        """When the last batch ended, or its tokens were delivered; 0 without any."""
        ends_s = np.array(self._start_s) + np.array(self._duration_s)
        return max([float(ends_s.max(initial=0.0)), *self._delivered_s.values()])

    @property
    def num_running(self) -> NDArray[np.int64]:
        """Requests that hold KV while each batch of the schedule runs."""
        return np.array(self._num_running, dtype=np.int64)[self._order()]

    @property
    def num_waiting(self) -> NDArray[np.int64]:
        """Requests that wait meanwhile."""
        return np.array(self._num_waiting, dtype=np.int64)[self._order()]

    def _order(self) -> NDArray[np.int64]:
        """Batches by start; they were added by end."""
        return np.argsort(np.array(self._start_s, dtype=np.float64), kind="stable").astype(np.int64)

    def schedule(self, admitted: tuple[int, ...], *, measured: bool, cached: dict[int, int] | None = None) -> Schedule:
        """All batches in order of start.

        Parameters
        ----------
        admitted : tuple of int
            Requests that were promised to be on time at the end.
        measured : bool
            Whether batch times are others than the engine model's.
        cached : mapping or None
            By request, tokens that a prefix cache held when it began.
        """
        order = self._order()
        rank = np.argsort(order).tolist()
        offset = np.array(self._offset, dtype=np.int64)
        counts = np.diff(offset)[order]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        entries = np.repeat(offset[:-1][order] - starts[:-1], counts) + np.arange(len(self._request))
        emitted = None
        if self._emitted:
            emitted = np.ones(len(self._request), dtype=np.int64)
            for b, values in self._emitted.items():
                emitted[offset[b] : offset[b + 1]] = values
            emitted = emitted[entries]
        duration_s = np.array(self._duration_s, dtype=np.float64)
        return Schedule(
            start_s=np.array(self._start_s, dtype=np.float64)[order],
            replica=np.array(self._replica, dtype=np.int64)[order],
            offset=starts,
            request=np.array(self._request, dtype=np.int64)[entries],
            tokens=np.array(self._tokens, dtype=np.int64)[entries],
            emitted=emitted,
            preempted={rank[b]: requests for b, requests in self._preempted.items()},
            admitted=admitted,
            duration_s=duration_s[order] if measured else None,
            cached=cached or {},
            moves=tuple(sorted(self.moves, key=lambda move: move.start_s)),
            delivered_s={rank[b]: delivered_s for b, delivered_s in self._delivered_s.items()},
        )
