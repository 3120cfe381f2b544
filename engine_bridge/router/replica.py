"""One replica behind the router."""

import asyncio
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.engine_bridge.router.books import ReplicaBooks
from slo_opt.engine_bridge.router.health import Health
from slo_opt.engine_bridge.router.options import RouterOptions


class Attempt:
    """One request at one replica, with the time that it has left.

    Parameters
    ----------
    clock : asyncio.Timeout
        Ends it.
    now_s : float
        The moment.

    Attributes
    ----------
    heard_s : float
        When the last byte came, or when it was sent.
    lost : bool
        Ended because the replica is gone.
    writing : bool
        It is the client that is waited for.
    tail : bytes
        The last bytes that went to the client.
    """

    __slots__ = ("clock", "heard_s", "lost", "tail", "writing")

    def __init__(self, clock: asyncio.Timeout, now_s: float) -> None:
        self.clock = clock
        self.heard_s = now_s
        self.lost = self.writing = False
        self.tail = b""

    def lose(self, now_s: float) -> None:
        """End it: the replica is gone."""
        if not self.clock.expired():
            self.lost = True
            self.clock.reschedule(now_s)


class Replica:
    """Where it is, how it is, and what is under way there.

    Parameters
    ----------
    url : str
        Without ``/v1`` and without a slash at its end; also its id.
    engine : EngineModel
        Batch times and limits, as believed.
    stranger_slo : str
        See `ReplicaBooks`.
    options : RouterOptions
        How often to look.

    Attributes
    ----------
    books : ReplicaBooks
        What is believed of its engine.
    health : Health
        Whether it is there.
    models : list of dict
        What it offers, as it tells; empty until it does.
    attempts : set of Attempt
        Under way.
    looks : int
        How often it has been looked at with success.
    look_now : asyncio.Event
        Set where the next look has come nearer.
    """

    def __init__(self, url: str, engine: EngineModel, stranger_slo: str, options: RouterOptions) -> None:
        self.url = url
        self.books = ReplicaBooks(url, engine, stranger_slo)
        self.health = Health(options.probe_interval_s, options.probe_failures)
        self.models: list[dict[str, Any]] = []
        self.attempts: set[Attempt] = set()
        self.looks = 0
        self.look_now = asyncio.Event()

    @property
    def id(self) -> str:
        """Its address."""
        return self.url

    def model_ids(self) -> set[str]:
        """Names of its models."""
        return {str(model["id"]) for model in self.models}

    def lose_silent(self, since_s: float, now_s: float) -> int:
        """End what has not heard a byte from it since then; returns how many."""
        silent = [attempt for attempt in self.attempts if attempt.heard_s < since_s and not attempt.writing]
        for attempt in silent:
            attempt.lose(now_s)
        return len(silent)
