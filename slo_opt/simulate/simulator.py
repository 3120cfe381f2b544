"""The event loop: arrivals, batches, rounds that come back; one policy on one replica.

Time moves from batch to batch. Between two batches all arrivals and releases up to now join the queue and the policy is
asked once; a batch then takes what the engine model says (times the noise and the model error asked for), and its
tokens appear at its end. Several replicas have a loop of their own, over the same steps: `slo_opt.simulate.fleet`.
"""

import heapq
import math
from array import array

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.policies.interface import AllocationPolicy, Standing
from slo_opt.simulate.life import Life
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.prefix_cache import PrefixCache
from slo_opt.simulate.recorder import Recorder
from slo_opt.simulate.replica import Replica
from slo_opt.simulate.run import Run
from slo_opt.simulate.server import Server

__all__ = ["SimulationOptions", "simulate"]

_LOOK_EVERY = 32  # batches between two looks for requests that are late already


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
        self._recorder = Recorder()
        self._server = Server(self._replica, options, self._recorder)
        self._gaps = {name: array("d") for name in instance.slo_classes}
        self._lives = [
            Life(instance, i, self._gaps[instance.slo_of(request).name]) for i, request in enumerate(instance.requests)
        ]
        # Arrivals and releases of later rounds alike: (time, index).
        self._events = [(life.release_s, life.index) for life in self._lives]
        heapq.heapify(self._events)

    def run(self) -> Run:
        """All of it."""
        replica, server, events = self._replica, self._server, self._events
        now_s = 0.0
        while not self._cut(now_s):
            while events and events[0][0] <= now_s:
                replica.add(self._lives[heapq.heappop(events)[1]])
            if replica.idle:
                if not events:
                    break
                now_s = max(now_s, events[0][0])
                continue
            allocation = server.ask(now_s)
            if allocation.tokens:
                now_s = server.start(allocation.tokens, now_s)
                for life in server.finish():
                    if not life.done:
                        heapq.heappush(events, (life.next_round(now_s), life.index))
            elif not allocation.preempted:
                next_s = min(allocation.wake_s, events[0][0] if events else math.inf)
                if next_s == math.inf:
                    break
                now_s = next_s
        return self._result(now_s)

    def _cut(self, now_s: float) -> bool:
        most, lost = self._options.max_lost, self._replica.num_lost
        if most is None:
            return False
        if len(self._recorder) % _LOOK_EVERY == 0:
            lost += self._replica.num_doomed(now_s)
        return lost > most

    def _result(self, end_s: float) -> Run:
        options, recorder = self._options, self._recorder
        return Run(
            instance=self._instance,
            policy=self._policy.name,
            seed=options.seed,
            schedule=recorder.schedule(
                tuple(life.index for life in self._lives if life.standing is Standing.ADMITTED),
                measured=bool(options.noise) or options.slowdown != 1.0,
                cached=None if self._cache is None else self._cache.hits,
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
            num_running=recorder.num_running,
            num_waiting=recorder.num_waiting,
            gaps_s={name: np.array(gaps, dtype=np.float64) for name, gaps in self._gaps.items()},
            decision_s=np.array(recorder.decision_s, dtype=np.float64),
        )
