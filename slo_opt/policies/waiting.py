"""The jobs that wait, in the order of a key, kept from one decision to the next."""

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from slo_opt.policies.interface import Job, Standing

_BEST_EFFORT = Standing.BEST_EFFORT


class WaitingQueue:
    """Waiting jobs by ascending key; best-effort jobs apart, by arrival.

    A decision costs no more than the jobs that came or went since the one before. Where the engine did otherwise than
    it was told, the queue is built anew.

    Parameters
    ----------
    key : callable
        Of a job; constant while it waits, or else `rekey` is called when it has changed.

    Attributes
    ----------
    key : callable
        As given.
    tokens : int
        Tokens of prefill that wait, those of best-effort jobs left out.
    """

    def __init__(self, key: Callable[[Job], float]) -> None:
        self.key = key
        self.tokens = 0
        self._heap: list[tuple[float, int, Job]] = []
        self._spare: list[tuple[float, int, Job]] = []
        self._known: dict[int, Job] = {}
        self._count = count()

    def __len__(self) -> int:
        """Jobs that wait, best effort left out."""
        return len(self._heap)

    def sync(self, waiting: Sequence[Job], disturbed: bool = False) -> None:
        """Take in what has come since the last decision: arrivals at the back, preempted jobs at the front.

        Parameters
        ----------
        waiting : sequence of Job
            `EngineSnapshot.waiting`.
        disturbed : bool
            `EngineSnapshot.disturbed`: nothing can be concluded from the last decision.
        """
        if disturbed:
            self._clear()
        known = self._known
        new: list[Job] = []
        for job in reversed(waiting):
            if id(job) in known:
                break
            new.append(job)
        new.reverse()
        if len(new) < len(waiting):
            for job in waiting:
                if id(job) in known:
                    break
                new.append(job)
        if len(known) + len(new) != len(waiting):
            self._clear()
            new = list(waiting)
        for job in new:
            self._add(job)

    def _clear(self) -> None:
        self._heap, self._spare, self._known, self.tokens = [], [], {}, 0

    def _add(self, job: Job) -> None:
        self._known[id(job)] = job
        if job.standing is _BEST_EFFORT:
            heapq.heappush(self._spare, (job.release_s, next(self._count), job))
        else:
            self.tokens += job.left_tokens
            heapq.heappush(self._heap, (self.key(job), next(self._count), job))

    def rekey(self) -> None:
        """Sort again after keys have changed."""
        self._heap = [(self.key(job), n, job) for _, n, job in self._heap]
        heapq.heapify(self._heap)

    def first(self) -> Job | None:
        """The job of least key; None if there is none."""
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Job:
        """Take out the job of least key."""
        job = heapq.heappop(self._heap)[2]
        del self._known[id(job)]
        self.tokens -= job.left_tokens
        return job

    def demote(self) -> Job:
        """Move the job of least key among those of best effort."""
        job = self.pop()
        self._known[id(job)] = job
        heapq.heappush(self._spare, (job.release_s, next(self._count), job))
        return job

    def under_slo(self) -> list[Job]:
        """All but best-effort jobs, in no order."""
        return [job for _, _, job in self._heap]

    def remove(self, job: Job) -> None:
        """Take out a job that is not of best effort."""
        self._heap = [item for item in self._heap if item[2] is not job]
        heapq.heapify(self._heap)
        del self._known[id(job)]
        self.tokens -= job.left_tokens

    def relegate(self, job: Job) -> None:
        """Move a job among those of best effort."""
        self.remove(job)
        self._known[id(job)] = job
        heapq.heappush(self._spare, (job.release_s, next(self._count), job))

    def first_spare(self) -> Job | None:
        """The best-effort job that came first; None if there is none."""
        return self._spare[0][2] if self._spare else None

    def pop_spare(self) -> Job:
        """Take out the best-effort job that came first."""
        job = heapq.heappop(self._spare)[2]
        del self._known[id(job)]
        return job
