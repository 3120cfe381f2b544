"""The requests inside a live engine, in the order that policies expect them."""

from collections.abc import Iterator
from itertools import chain, islice
from operator import attrgetter

from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.policies.interface import Standing

MAX_SPARE = 32  # best-effort requests shown at a time: policies take them by arrival


class Roster:
    """Jobs by request id: those that hold KV blocks as they began, those that wait as they came, returned ones first.

    Invariant: every job is in exactly one of `running`, `ending` and the two waiting lists.

    Attributes
    ----------
    running : dict of str to LiveJob
        As they began.
    ending : dict of str to LiveJob
        Their last token is in flight: they hold KV blocks, and there is nothing to decide.
    """

    def __init__(self) -> None:
        self.running: dict[str, LiveJob] = {}
        self.ending: dict[str, LiveJob] = {}
        self._waiting: dict[str, LiveJob] = {}
        self._spare: dict[str, LiveJob] = {}

    def __len__(self) -> int:
        return len(self.running) + len(self.ending) + self.num_waiting

    def __iter__(self) -> Iterator[LiveJob]:
        return chain(self.running.values(), self.ending.values(), self._waiting.values(), self._spare.values())

    @property
    def num_waiting(self) -> int:
        """Requests that hold no KV blocks."""
        return len(self._waiting) + len(self._spare)

    @property
    def num_best_effort(self) -> int:
        """Requests of best effort, running and waiting."""
        running = sum(job.standing is Standing.BEST_EFFORT for job in self.running.values())
        return running + len(self._spare)

    def get(self, id: str) -> LiveJob | None:
        """The job of that request; None if there is none."""
        return self.running.get(id) or self._waiting.get(id) or self._spare.get(id) or self.ending.get(id)

    def add(self, job: LiveJob) -> None:
        """Let a job wait behind all others."""
        self._list_of(job)[job.id] = job

    def _list_of(self, job: LiveJob) -> dict[str, LiveJob]:
        return self._spare if job.standing is Standing.BEST_EFFORT else self._waiting

    def begin(self, job: LiveJob) -> None:
        """A waiting job got its first tokens."""
        if self._waiting.pop(job.id, None) is None:
            self._spare.pop(job.id, None)
        self.running[job.id] = job

    def end(self, job: LiveJob) -> None:
        """The last token of a running job is in flight."""
        self.ending[job.id] = self.running.pop(job.id)

    def give_back(self, job: LiveJob) -> None:
        """A running job lost its KV blocks: it waits before all others."""
        if self.running.pop(job.id, None) is None:
            del self.ending[job.id]
        jobs = self._list_of(job)
        others = list(jobs.items())
        jobs.clear()
        jobs[job.id] = job
        jobs.update(others)

    def demote(self, job: LiveJob) -> None:
        """Make a job best effort; one that waits keeps its place among those by arrival."""
        job.standing = Standing.BEST_EFFORT
        if self._waiting.pop(job.id, None) is not None:
            self._spare[job.id] = job

    def remove(self, id: str) -> LiveJob | None:
        """Take a job out; it, or None if there was none."""
        for jobs in (self.running, self._waiting, self._spare, self.ending):
            job = jobs.pop(id, None)
            if job is not None:
                return job
        return None

    def waiting(self, limit: int) -> list[LiveJob]:
        """By arrival, the first `limit` that wait under an SLO and the first few of best effort.

        Whoever cannot be in time any more becomes best effort at the next decision: nobody waits behind the hopeless.
        """
        jobs = list(islice(self._waiting.values(), limit))
        if self._spare:
            jobs += islice(self._spare.values(), min(limit, MAX_SPARE))
            jobs.sort(key=attrgetter("release_s"))
        return jobs
