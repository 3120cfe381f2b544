"""Where requests are given to replicas: the books of each replica, and the policy that chooses."""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.ray_serve.arrival import Arrival
from slo_opt.engine_bridge.ray_serve.plan import ServePlan
from slo_opt.engine_bridge.ray_serve.stats import read_stats
from slo_opt.engine_bridge.router.books import ReplicaBooks
from slo_opt.engine_bridge.router.shape import TextMeasure
from slo_opt.policies.interface import RoundEnd, Standing
from slo_opt.routing.interface import Placement, RoutingPolicy
from slo_opt.routing.registry import prepare_routers

_log = logging.getLogger("slo_opt")


class Desk:
    """Chooses a replica for each request, and keeps books of what became of it.

    The process that takes requests and the router in it share one: requests come and tokens pass on one thread, Ray
    routes on another. All times are seconds of one monotonic clock, but those in reports.

    Parameters
    ----------
    policy : RoutingPolicy
        Chooses. Where it fails, the replica with the fewest requests is taken.
    engine : EngineModel
        Batch times of every replica, and its limits until it tells them.
    config : BridgeConfig
        Names the SLO classes.
    max_hold_s : float
        See `ServePlan`.

    Attributes
    ----------
    num_failures : int
        Decisions that the policy failed to make.
    """

    def __init__(self, policy: RoutingPolicy, engine: EngineModel, config: BridgeConfig, max_hold_s: float) -> None:
        self._policy = policy
        self._engine = engine
        self.config = config
        self._max_hold_s = max_hold_s
        self._lock = threading.Lock()
        self._books: dict[str, ReplicaBooks] = {}
        self._told_s: dict[str, float] = {}
        self._jobs: dict[str, LiveJob] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._places: dict[str, str] = {}
        self._measure = TextMeasure()
        self._numbers = count()
        self.num_failures = 0

    def arrive(self, arrival: Arrival, now_s: float) -> str:
        """A request has come; returns its id. It stays known until `leave`."""
        with self._lock:
            tokens = self._measure.tokens(arrival.shape)
            slo = arrival.slo
            id = f"r{next(self._numbers)}"
            self._jobs[id] = LiveJob(id, slo, now_s, slo.ttft_limit_s(self._engine, tokens), tokens)
            self._arrivals[id] = arrival
            return id

    def choose(self, id: str, replicas: Sequence[str], now_s: float) -> Placement:
        """Where a request goes, which is booked at once; or that it is held back.

        Parameters
        ----------
        id : str
            As `arrive` named it. One that has left goes where the fewest are, and is not booked.
        replicas : sequence of str
            Ids of those that can take it; at least one.
        now_s : float
            The moment.
        """
        with self._lock:
            books = [self._books_of(replica) for replica in replicas]
            job = self._jobs.get(id)
            if job is None:
                return Placement(_fewest(books))
            self._take_back(id, now_s)
            placement = self._ask(job, books, now_s)
            if placement.replica is None:
                if now_s - job.release_s < self._max_hold_s:
                    return placement
                placement = Placement(_fewest(books), best_effort=True)
            assert placement.replica is not None
            if placement.best_effort:
                job.standing = Standing.BEST_EFFORT
            self._places[id] = placement.replica
            self._books[placement.replica].sent(job, now_s)
            return placement

    def latest_s(self, id: str) -> float:
        """Until when a request may be held back."""
        with self._lock:
            job = self._jobs.get(id)
            return 0.0 if job is None else job.release_s + self._max_hold_s

    def promised(self, id: str) -> bool:
        """Whether it is under an SLO, and has not been placed without a promise."""
        with self._lock:
            job = self._jobs.get(id)
            return job is not None and job.standing is not Standing.BEST_EFFORT

    def pass_on(self, id: str, tokens: int, now_s: float) -> None:
        """So many tokens of a request come from its replica."""
        with self._lock:
            if id in self._places:
                self._books[self._places[id]].passed(self._jobs[id], tokens, now_s)

    def take_back(self, id: str, now_s: float) -> None:
        """A request is not at its replica any more; it may be sent elsewhere if no token of it came."""
        with self._lock:
            self._take_back(id, now_s)

    def leave(self, id: str, now_s: float, *, tokens: int = 0, prompt_tokens: int | None = None) -> None:
        """A request is over; what it was like is learned from.

        Parameters
        ----------
        id : str
            As `arrive` named it; again does nothing.
        now_s : float
            The moment.
        tokens : int
            Of its answer; 0 where it was not served to its end.
        prompt_tokens : int or None
            Of its prompt, where the answer tells.
        """
        with self._lock:
            self._take_back(id, now_s)
            job = self._jobs.pop(id, None)
            if job is None:
                return
            arrival = self._arrivals.pop(id)
            if prompt_tokens:
                self._measure.observe(arrival.shape, prompt_tokens)
            if tokens:
                try:
                    self._policy.observe(RoundEnd(job.id, job.round_slo, tokens, job.missed))
                except Exception as error:
                    self._complain(error)

    def report(self, replica: str, stats: object, now_s: float, wall_s: float) -> None:
        """What a replica told last; again does nothing.

        Parameters
        ----------
        replica : str
            Its id.
        stats : object
            As Ray carried it.
        now_s, wall_s : float
            The moment on the monotonic and on the wall clock.
        """
        told = read_stats(stats)
        if told is None:
            return
        with self._lock:
            if self._told_s.get(replica) == told.at_s:
                return
            self._told_s[replica] = told.at_s
            books = self._books_of(replica)
            books.limits(told.max_model_len)
            books.reported(told.report, now_s - max(0.0, wall_s - told.at_s))

    def keep(self, replicas: Sequence[str]) -> None:
        """These replicas are there; whoever else was is forgotten when the last of its requests has left."""
        with self._lock:
            for gone in self._books.keys() - set(replicas):
                if not len(self._books[gone]):
                    del self._books[gone]
                    self._told_s.pop(gone, None)

    def views(self) -> dict[str, Any]:
        """What the policy sees of each replica, by id."""
        with self._lock:
            return {id: books.look() for id, books in self._books.items()}

    def _books_of(self, replica: str) -> ReplicaBooks:
        if replica not in self._books:
            self._books[replica] = ReplicaBooks(replica, self._engine, self.config.default_class)
        return self._books[replica]

    def _take_back(self, id: str, now_s: float) -> None:
        place = self._places.pop(id, None)
        if place is not None:
            self._books[place].ended(self._jobs[id], now_s)

    def _ask(self, job: LiveJob, books: Sequence[ReplicaBooks], now_s: float) -> Placement:
        views = [book.look() for book in books]
        try:
            placement = self._policy.route(job, views, now_s)
            if placement.replica is not None and placement.replica not in {view.id for view in views}:
                raise LookupError(f"it chose {placement.replica!r}, which was not offered")
        except Exception as error:
            self._complain(error)
            placement = Placement(_fewest(books))
        return placement

    def _complain(self, error: Exception) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            _log.warning(
                "slo-opt: the routing policy failed, and the fewest requests decide: %r", error, exc_info=error
            )


def _fewest(books: Sequence[ReplicaBooks]) -> str:
    return min(books, key=lambda book: book.view.num_requests).view.id


def desk_of(plan: Mapping[str, Any]) -> Desk:
    """The desk of a plan in this process: equal plans share one.

    Parameters
    ----------
    plan : mapping
        What `ServePlan.to_dict` gave.

    Raises
    ------
    InvalidInputError
        A file of the plan is not on this machine, or means nothing.
    """
    return _desk(json.dumps(plan, sort_keys=True))


_making = threading.Lock()


def _desk(text: str) -> Desk:
    with _making:
        return _made(text)


@cache
def _made(text: str) -> Desk:
    plan = ServePlan(**json.loads(text))
    prepare_routers([plan.policy])  # before the first request, on this machine too
    return Desk(plan.make_policy(), plan.engine_model(), plan.classes(), plan.max_hold_s)
