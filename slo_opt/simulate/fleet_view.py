"""What the router knows of a simulated replica: all of it, or what passes through the router and the latest report."""

import math
from collections.abc import Collection, Iterable
from typing import Protocol

from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import ReplicaView
from slo_opt.simulate.life import Life
from slo_opt.simulate.server import Server

_FIELDS = tuple(Job.__dataclass_fields__)
_OF_THE_ENGINE = ("computed_tokens", "kv_blocks", "preemptions", "standing")


class Watcher(Protocol):
    """Keeps the view of one replica up to date.

    Attributes
    ----------
    view : ReplicaView
        For the router.
    """

    view: ReplicaView

    def sent(self, life: Life) -> None:
        """The router sends a request there."""

    def produced(self, lives: Iterable[Life], ends: Iterable[RoundEnd]) -> None:
        """Tokens of these requests pass through the router, and these rounds end."""

    def gone(self, life: Life) -> None:
        """A request has left before its end: refused, lost, or moved."""

    def changed(self) -> None:
        """The engine has started or finished a batch, or freed KV."""

    def report(self) -> None:
        """The engine tells its state."""


class ExactWatcher:
    """The view is the replica as it is.

    Parameters
    ----------
    view : ReplicaView
        To be kept.
    server : Server
        The replica.
    coming : collection of Life
        Requests that were sent there and whose KV is on its way.
    """

    def __init__(self, view: ReplicaView, server: Server, coming: Collection[Life]) -> None:
        self.view = view
        self._server = server
        self._coming = coming
        self.changed()

    def sent(self, life: Life) -> None:
        """Whoever waits is in the replica already, or on its way."""
        self.changed()

    def produced(self, lives: Iterable[Life], ends: Iterable[RoundEnd]) -> None:
        """The jobs of the view are those of the engine."""

    def gone(self, life: Life) -> None:
        """Whoever left is no longer in the replica."""
        self.changed()

    def changed(self) -> None:
        """Look again."""
        view, server = self.view, self._server
        replica = server.replica
        view.running = replica.running  # type: ignore[assignment]
        view.waiting = [*replica.waiting, *self._coming] if self._coming else replica.waiting  # type: ignore[assignment]
        _look(view, server)

    def report(self) -> None:
        """Nothing is new."""


class ReportWatcher:
    """The view is the latest report, and what has passed through the router since.

    A token tells that all of the context before it has been computed. How many KV blocks are free only a report tells.

    Parameters
    ----------
    view : ReplicaView
        To be kept.
    server : Server
        The replica.
    coming : collection of Life
        Requests that were sent there and whose KV is on its way.
    """

    def __init__(self, view: ReplicaView, server: Server, coming: Collection[Life]) -> None:
        self.view = view
        self._server = server
        self._coming = coming
        self.report()

    def sent(self, life: Life) -> None:
        """It waits there until a report or a token says otherwise."""
        self.view.waiting.append(_copy(life))
        self.view.version += 1

    def produced(self, lives: Iterable[Life], ends: Iterable[RoundEnd]) -> None:
        """Count the tokens; strike out whose round has ended."""
        view = self.view
        ended = {end.id for end in ends}
        known = {job.id: job for job in (*view.running, *view.waiting)}
        for life in lives:
            job = known.get(life.id)
            if job is not None and life.id not in ended and life.emitted_tokens > job.emitted_tokens:
                _refresh(job, life)
                job.computed_tokens, job.decoding = job.known_tokens - 1, True
                if job in view.waiting:
                    view.waiting.remove(job)
                    view.running.append(job)
        self._strike(ended)

    def gone(self, life: Life) -> None:
        """Strike it out."""
        self._strike({life.id})

    def changed(self) -> None:
        """Nobody tells the router before the next report."""

    def report(self) -> None:
        """Copy all of it."""
        view, server = self.view, self._server
        replica = server.replica
        view.running = [_copy(life) for life in replica.running]
        view.waiting = [_copy(life) for life in (*replica.waiting, *self._coming)]
        _look(view, server)

    def _strike(self, ids: set[str]) -> None:
        view = self.view
        view.running = [job for job in view.running if job.id not in ids]
        view.waiting = [job for job in view.waiting if job.id not in ids]
        view.version += 1


def _look(view: ReplicaView, server: Server) -> None:
    """Free blocks and the batch under way, as the engine has them now."""
    view.free_kv_blocks = server.replica.free_blocks
    view.batch_ends_s = server.model_end_s if server.batch is not None else -math.inf
    view.version += 1


def _copy(life: Life) -> Job:
    return Job(**{name: getattr(life, name) for name in _FIELDS})


def _refresh(job: Job, life: Life) -> None:
    """What the tokens of a request tell of it."""
    for name in _FIELDS:
        if name not in _OF_THE_ENGINE:
            setattr(job, name, getattr(life, name))
