"""Random fleets for testing their simulation: any legal router, any legal policy, faults, scaling, replicas apart."""

import math
import random
from dataclasses import dataclass, field, replace

from watched import RandomPolicy, WatchedPolicy, drawn_instance, named

from slo_opt.domain.fleet import KvTransfer
from slo_opt.domain.instance import Instance
from slo_opt.policies.interface import EngineSnapshot, Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView, Role
from slo_opt.simulate.autoscale import FleetState, ScalingDecision
from slo_opt.simulate.faults import Fault, FaultKind
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_run import FleetRun
from slo_opt.simulate.fleet_spec import FleetOptions, ReplicaSpec, Scaling
from slo_opt.simulate.options import SimulationOptions
from slo_opt.traces.small import small_instance


class FirstRouter:
    """Always the first replica that is offered."""

    name = "first"

    def route(self, job, replicas, now_s):
        return Placement(replicas[0].id)

    def observe(self, end):
        pass


class RandomRouter:
    """Any legal placement; now and then it holds a request back, or promises nothing. It checks what it is shown.

    Parameters
    ----------
    rng : random.Random
        Source of all choices.
    exact : bool
        Whether the views must be the replicas as they are.
    """

    name = "random"

    def __init__(self, rng: random.Random, *, exact: bool = True) -> None:
        self._rng = rng
        self._exact = exact
        self._now_s = -math.inf
        self._versions: dict[str, int] = {}
        self._left = 200  # placements held back: chance alone need not end
        self.routed: list[tuple[float, str, tuple[str, ...], str | None]] = []
        self.ends: list[RoundEnd] = []
        self.decoding = 0

    def route(self, job: Job, replicas: list[ReplicaView], now_s: float) -> Placement:
        """A replica, or none yet."""
        assert now_s >= self._now_s
        self._now_s = now_s
        ids = [view.id for view in replicas]
        assert ids
        assert len(set(ids)) == len(ids)
        self.decoding += job.decoding
        for view in replicas:
            self._check(view, job)
        chosen = self._rng.choice(ids)
        if self._left and self._rng.random() < 0.15:
            self._left -= 1
            chosen = None
        self.routed.append((now_s, job.id, tuple(ids), chosen))
        if chosen is None:
            return Placement(None, wake_s=now_s + self._rng.uniform(1e-6, 0.05))
        return Placement(chosen, best_effort=self._rng.random() < 0.1)

    def _check(self, view: ReplicaView, job: Job) -> None:
        assert view.role is not (Role.PREFILL if job.decoding else Role.DECODE)
        assert view.version >= self._versions.get(view.id, 0)
        self._versions[view.id] = view.version
        jobs = [*view.running, *view.waiting]
        assert job.id not in {other.id for other in jobs}
        assert len({other.id for other in jobs}) == len(jobs)
        if self._exact:
            held = sum(other.kv_blocks for other in view.running)
            assert held + view.free_kv_blocks <= view.engine.kv_blocks
            assert all(other.kv_blocks for other in view.running)
            assert not any(other.kv_blocks for other in view.waiting)

    def observe(self, end: RoundEnd) -> None:
        """Remember it."""
        self.ends.append(end)


class FleetWatchedPolicy(WatchedPolicy):
    """Checks the states of one replica of a fleet, to which requests come from others and from which they leave."""

    def _check_blocks(self, snapshot: EngineSnapshot) -> None:
        held = sum(job.kv_blocks for job in snapshot.running)
        assert all(job.kv_blocks == snapshot.engine.kv_blocks_for(job.computed_tokens) > 0 for job in snapshot.running)
        assert not any(job.kv_blocks for job in snapshot.waiting)
        assert 0 <= snapshot.free_kv_blocks <= snapshot.engine.kv_blocks - held  # less where KV is on its way
        ids = [job.id for job in (*snapshot.running, *snapshot.waiting)]
        assert len(set(ids)) == len(ids)

    def _check_tokens(self, snapshot: EngineSnapshot) -> None:
        for job in (*snapshot.running, *snapshot.waiting):
            self.jobs[job.id] = job
            assert job.release_s <= snapshot.now_s
            assert job.known_tokens == job.cached_tokens + job.prompt_tokens + job.emitted_tokens
            assert job.left_tokens >= 1
            assert job.decoding == (job.emitted_tokens > 0 and job.left_tokens == 1)
            if job.kv_blocks:
                least, most = self._kept[job.id, job.round]
                assert least <= job.computed_tokens <= most
            else:
                assert job.computed_tokens in (0, job.cached_tokens, job.known_tokens - 1)


class RandomScaler:
    """Starts and drains at random."""

    name = "random"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def scale(self, state: FleetState) -> ScalingDecision:
        """Anything."""
        assert set(state.served) == {view.id for view in state.replicas}
        assert state.num_starting >= 0
        drain = tuple(view.id for view in state.replicas if self._rng.random() < 0.15)
        return ScalingDecision(self._rng.choice([0, 0, 1, 2]), drain)


@dataclass
class Drawn:
    """A fleet, what it was given, and what came of it."""

    instance: Instance
    specs: list[ReplicaSpec]
    options: FleetOptions
    router: RandomRouter
    watched: list[FleetWatchedPolicy] = field(default_factory=list)
    run: FleetRun | None = None


def drawn_faults(rng: random.Random, num_replicas: int, last_s: float) -> tuple[Fault, ...]:
    """A few, one after the other on each replica."""
    faults = []
    for number in range(num_replicas):
        at_s = 0.0
        while rng.random() < 0.6:
            at_s += rng.uniform(0.0, last_s)
            kind = rng.choice(list(FaultKind))
            for_s = rng.uniform(0.01, last_s)
            if kind is FaultKind.FAIL and rng.random() < 0.2:
                faults.append(Fault(kind, number, at_s, math.inf))
                break
            faults.append(Fault(kind, number, at_s, for_s, rng.choice([0.5, 3.0, 10.0])))
            at_s += for_s
    return tuple(faults)


def drawn_fleet(seed: int, **fixed) -> Drawn:
    """A random fleet after its run. Given, not drawn: `roles`, `policy`, `faults`, `scale`, `report_every_s`."""
    rng = random.Random(seed)
    instance = drawn_instance(rng, max_requests=12)
    roles = fixed.get("roles") or rng.choice(
        [
            [Role.BOTH] * rng.randint(1, 4),
            [Role.PREFILL] * rng.randint(1, 2) + [Role.DECODE] * rng.randint(1, 2),
            [Role.PREFILL, Role.BOTH, Role.DECODE],
        ]
    )
    policy = fixed.get("policy") or rng.choice(["random", "random", "random with rejections", "vllm-fcfs", "sarathi"])
    other = replace(small_instance(rng).engine, name="other")
    engines = [instance.engine if rng.random() < 0.7 else other for _ in roles]
    acceptance = rng.choice([0.0, 0.0, 0.7])
    simulation = SimulationOptions(
        seed=seed, noise=rng.choice([0.0, 0.0, 0.2]), slowdown=rng.choice([1.0, 1.0, 1.3]), acceptance=acceptance
    )
    last_s = instance.requests[-1].arrival_s + 1.0
    faults = fixed.get("faults", rng.random() < 0.4)
    report_every_s = fixed.get("report_every_s", rng.choice([0.0, 0.0, 0.05, 0.5]))
    router = RandomRouter(random.Random(seed + 1), exact=not report_every_s)
    drawn = Drawn(instance, [], FleetOptions(), router)

    def spec(engine, role) -> ReplicaSpec:
        def fresh() -> FleetWatchedPolicy:
            if policy.startswith("random"):
                inner = RandomPolicy(rng, reject=policy != "random")
            else:
                inner = named(policy, replace(instance, engine=engine))
            watched = FleetWatchedPolicy(inner, math.nan)
            drawn.watched.append(watched)
            return watched

        return ReplicaSpec(engine, fresh, role)

    drawn.specs = [spec(engine, role) for engine, role in zip(engines, roles, strict=True)]
    scaling = None
    if fixed.get("scale", rng.random() < 0.3):
        template = rng.choice(drawn.specs)
        scaling = Scaling(RandomScaler(rng), template, rng.uniform(0.02, 0.5), rng.choice([0.0, 0.1, 1.0]), most=6)
    drawn.options = FleetOptions(
        simulation,
        KvTransfer(rng.choice([0.0, 1e-5, 1e-3]), rng.choice([0.0, 0.01])),
        report_every_s,
        drawn_faults(rng, len(roles), last_s) if faults else (),
        scaling,
    )
    drawn.run = simulate_fleet(instance, drawn.specs, router, drawn.options)
    return drawn
