"""The event loop: arrivals, batches, rounds that come back; one policy on one replica.

Time moves from batch to batch. Between two batches all arrivals and releases up to now join the queue and the policy is
asked once; a batch then takes what the engine model says (times the noise and the model error asked for), and its
tokens appear at its end.
"""

import heapq
import math
import time
from array import array
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.policies.interface import AllocationPolicy, Standing
from slo_opt.simulate.life import Life
from slo_opt.simulate.prefix_cache import PrefixCache
from slo_opt.simulate.replica import IllegalAllocationError, Replica
from slo_opt.simulate.run import Run

_LOOK_EVERY = 32  # batches between two looks for requests that are late already


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """How the simulated engine differs from its model.

    Parameters
    ----------
    seed : int
        For noise and speculation.
    noise : float
        Standard deviation of the logarithm of a factor on each batch time, of mean 1; 0 for none.
    slowdown : float
        A further factor on every batch time, which the policy does not know: the error of its model.
    acceptance : float
        Chance that a drafted token is accepted, each independent of the others; 0 for no draft model.
    max_lost : int or None
        Stop as soon as more requests under an SLO are sure to be lost: the run then only proves that.
    prefix_cache : bool
        Whether prompts that begin alike find the KV blocks of one another; see `PrefixCache`. Bounds do not count with
        it: they hold for runs without.
    """

    seed: int = 0
    noise: float = 0.0
    slowdown: float = 1.0
    acceptance: float = 0.0
    max_lost: int | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 2:
            raise InvalidInputError(f"noise is {self.noise}; expected the spread of a factor, in [0, 2]")
        if not 0.1 <= self.slowdown <= 10:
            raise InvalidInputError(f"slowdown is {self.slowdown}; expected a factor in [0.1, 10]")
        if not 0 <= self.acceptance < 1:
            raise InvalidInputError(f"acceptance is {self.acceptance}; expected a probability in [0, 1)")
        if self.seed < 0:
            raise InvalidInputError(f"seed is {self.seed}; expected an integer >= 0")
        if self.max_lost is not None and self.max_lost < 0:
            raise InvalidInputError(f"max_lost is {self.max_lost}; expected a number of requests >= 0, or none")


class _Recorder:
    """Batches as they happen, in columns."""

    def __init__(self) -> None:
        self.start_s = array("d")
        self.duration_s = array("d")
        self.offset = array("q", [0])
        self.request = array("q")
        self.tokens = array("q")
        self.emitted: dict[int, list[int]] = {}
        self.preempted: dict[int, tuple[int, ...]] = {}
        self.num_running = array("q")
        self.num_waiting = array("q")

    def batch(self, start_s: float, duration_s: float, entries: list[tuple[Life, int]], replica: Replica) -> None:
        if replica.dropped:
            self.preempted[len(self.start_s)] = tuple(life.index for life in replica.dropped)
            replica.dropped = []
        self.start_s.append(start_s)
        self.duration_s.append(duration_s)
        self.request.extend([life.index for life, _ in entries])
        self.tokens.extend([tokens for _, tokens in entries])
        self.offset.append(len(self.request))
        self.num_running.append(len(replica.running))
        self.num_waiting.append(len(replica.waiting))

    def schedule(self, admitted: tuple[int, ...], measured: bool, cached: dict[int, int]) -> Schedule:
        emitted = None
        if self.emitted:
            emitted = np.ones(len(self.request), dtype=np.int64)
            for b, counts in self.emitted.items():
                emitted[self.offset[b] : self.offset[b + 1]] = counts
        return Schedule(
            start_s=np.array(self.start_s, dtype=np.float64),
            replica=np.zeros(len(self.start_s), dtype=np.int64),
            offset=np.array(self.offset, dtype=np.int64),
            request=np.array(self.request, dtype=np.int64),
            tokens=np.array(self.tokens, dtype=np.int64),
            emitted=emitted,
            preempted=self.preempted,
            admitted=admitted,
            duration_s=np.array(self.duration_s, dtype=np.float64) if measured else None,
            cached=cached,
        )


def simulate(instance: Instance, policy: AllocationPolicy, options: SimulationOptions | None = None) -> Run:
    """Serve an instance with a policy.

    Parameters
    ----------
    instance : Instance
        One replica. Requests that nothing can attain are offered and lost; those that it can never hold are rejected.
    policy : AllocationPolicy
        Fresh: policies keep what they have learned.
    options : SimulationOptions or None
        None: the engine is exactly its model.

    Returns
    -------
    Run
        Schedule and measurements. It ends when every request has left, when the policy serves nobody any more, or at
        `SimulationOptions.max_lost`.

    Raises
    ------
    IllegalAllocationError
        The policy asked for what the engine cannot do.
    InvalidInputError
        The instance has more than one replica.
    """
    if instance.num_replicas != 1:
        raise InvalidInputError(f"{instance.name}: {instance.num_replicas} replicas; simulate runs one")
    return _Simulation(instance, policy, options or SimulationOptions()).run()


class _Simulation:
    def __init__(self, instance: Instance, policy: AllocationPolicy, options: SimulationOptions) -> None:
        self._instance = instance
        self._options = options
        self._policy = policy
        self._cache = PrefixCache(instance) if options.prefix_cache else None
        self._replica = Replica(instance.engine, policy, options.acceptance, self._cache)
        self._rng = np.random.default_rng(options.seed)
        self._gaps = {name: array("d") for name in instance.slo_classes}
        self._lives = [
            Life(instance, i, self._gaps[instance.slo_of(request).name]) for i, request in enumerate(instance.requests)
        ]
        # Arrivals and releases of later rounds alike: (time, index).
        self._events = [(life.release_s, life.index) for life in self._lives]
        heapq.heapify(self._events)
        self._recorder = _Recorder()
        self._decision_s = array("d")

    def run(self) -> Run:
        """All of it."""
        replica, events = self._replica, self._events
        now_s = 0.0
        while not self._cut(now_s):
            while events and events[0][0] <= now_s:
                replica.add(self._lives[heapq.heappop(events)[1]])
            if replica.idle:
                if not events:
                    break
                now_s = max(now_s, events[0][0])
                continue
            began_s = time.perf_counter()
            allocation = replica.decide(now_s)
            self._decision_s.append(time.perf_counter() - began_s)
            if not allocation.tokens:
                if allocation.preempted:
                    continue
                wake_s = allocation.wake_s
                if not wake_s > now_s:  # NaN too
                    raise IllegalAllocationError(
                        f"policy {self._policy.name!r} gave an empty batch at {now_s:.6f} s and asked to be woken at "
                        f"{wake_s:.6f} s, which is not later"
                    )
                next_s = min(wake_s, events[0][0] if events else math.inf)
                if next_s == math.inf:
                    break
                now_s = next_s
                continue
            now_s = self._batch(replica.own(allocation.tokens, now_s), now_s)
        return self._result(now_s)

    def _cut(self, now_s: float) -> bool:
        most, lost = self._options.max_lost, self._replica.num_lost
        if most is None:
            return False
        if len(self._recorder.start_s) % _LOOK_EVERY == 0:
            lost += self._replica.num_doomed(now_s)
        return lost > most

    def _batch(self, entries: list[tuple[Life, int]], now_s: float) -> float:
        """Play one batch; its end."""
        replica, options = self._replica, self._options
        for life, _ in entries:
            if life.standing is Standing.UNDECIDED:
                life.standing = Standing.ADMITTED
        model_s = replica.start(entries, now_s)
        duration_s = model_s * options.slowdown
        if options.noise:
            duration_s *= math.exp(self._rng.normal(-(options.noise**2) / 2, options.noise))
        end_s = now_s + duration_s
        self._recorder.batch(now_s, duration_s, entries, replica)
        emitted, ended = replica.finish(entries, end_s, self._accepted)
        if emitted is not None:
            self._recorder.emitted[len(self._recorder.start_s) - 1] = emitted
        for life in ended:
            if not life.done:
                heapq.heappush(self._events, (life.next_round(end_s), life.index))
        replica.last_batch_s = duration_s
        return end_s

    def _accepted(self, drafted: int) -> int:
        """Drafted tokens accepted before the first that is not."""
        rejected = self._rng.random(drafted) >= self._options.acceptance
        return int(np.argmax(rejected)) if rejected.any() else drafted

    def _result(self, end_s: float) -> Run:
        options = self._options
        admitted = tuple(life.index for life in self._lives if life.standing is Standing.ADMITTED)
        return Run(
            instance=self._instance,
            policy=self._policy.name,
            seed=options.seed,
            schedule=self._recorder.schedule(
                admitted,
                measured=bool(options.noise) or options.slowdown != 1.0,
                cached={} if self._cache is None else self._cache.hits,
            ),
            end_s=end_s,
            cut=self._cut(end_s),
            num_preemptions=self._replica.num_preemptions,
            num_demotions=self._replica.num_demotions,
            finished=np.array([life.done for life in self._lives], dtype=np.bool_),
            on_time=np.array(
                [life.done and not life.missed and life.value > 0 for life in self._lives], dtype=np.bool_
            ),
            rejected=tuple(sorted(life.index for life in self._replica.rejected)),
            num_running=np.array(self._recorder.num_running, dtype=np.int64),
            num_waiting=np.array(self._recorder.num_waiting, dtype=np.int64),
            gaps_s={name: np.array(gaps, dtype=np.float64) for name, gaps in self._gaps.items()},
            decision_s=np.array(self._decision_s, dtype=np.float64),
        )
