"""A fleet against the simulation of one replica, and its rules one by one, with figures that can be added up."""

import math
import random
from dataclasses import replace

import pytest
from fleets import FirstRouter, RandomRouter
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import RandomPolicy, drawn_instance, named

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fleet import KvTransfer
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import Allocation
from slo_opt.routing.interface import Placement, Role
from slo_opt.simulate.dispatcher import IllegalPlacementError
from slo_opt.simulate.faults import Fault, FaultKind
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_spec import FleetOptions, ReplicaSpec, replica_spec
from slo_opt.simulate.metrics import run_metrics
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.simulator import simulate

SEEDS = st.integers(0, 10**9)
# A batch takes 10 s and 1 s a token.
PLAIN = EngineModel("plain", "made up", (RooflinePiece(1.0, 10.0),), block_size_tokens=4, kv_blocks=100)
SLOW = replace(PLAIN, name="slow", pieces=(RooflinePiece(1.0, 20.0),))
CHAT = {"chat": SloClass("chat", tpot_ms=20_000, ttft_ms=100_000)}


def instance_of(*requests: Request, engine: EngineModel = PLAIN) -> Instance:
    return Instance("case", requests, CHAT, engine)


def asked(name: str, arrival_s: float, *stages: Stage) -> Request:
    return Request(name, arrival_s, stages or (Stage(6, 3, "chat"),))


def specs(instance: Instance, *kinds: EngineModel | Role, policy: str = "vllm-fcfs") -> list[ReplicaSpec]:
    """Replicas by engine, or by role on the plain engine."""
    return [
        replica_spec(instance, policy, lengths="none", role=kind)
        if isinstance(kind, Role)
        else replica_spec(instance, policy, lengths="none", engine=kind)
        for kind in kinds
    ]


class Script:
    """Places requests as a list says."""

    name = "script"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []
        self.ends = []

    def route(self, job, replicas, now_s):
        self.calls.append((now_s, job.id, [view.id for view in replicas]))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Placement) else Placement(answer)

    def observe(self, end):
        self.ends.append(end.id)


def rows(run):
    return [
        (batch.start_s, batch.replica, dict(zip(batch.requests, batch.tokens, strict=True))) for batch in run.schedule
    ]


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from(["vllm-fcfs", "vllm-priority", "sarathi", "edf", "qoserve", "random"]))
def test_a_fleet_of_one_forms_the_batches_of_simulate(seed, policy):
    rng = random.Random(seed)
    instance = drawn_instance(rng)
    options = SimulationOptions(seed, rng.choice([0.0, 0.2]), rng.choice([1.0, 1.3]), rng.choice([0.0, 0.7]))

    def fresh():
        return RandomPolicy(random.Random(seed)) if policy == "random" else named(policy, instance)

    alone = simulate(instance, fresh(), options)
    if policy == "random" and alone.rejected:
        return  # turned away at once, by the fleet: this policy would be asked once more
    fleet = simulate_fleet(
        instance, [ReplicaSpec(instance.engine, fresh)], FirstRouter(), FleetOptions(simulation=options)
    )
    assert fleet.schedule.to_dict() == alone.schedule.to_dict()
    for name in ("rejected", "num_preemptions", "num_demotions", "policy", "cut"):
        assert getattr(fleet, name) == getattr(alone, name), name
    for name in ("finished", "on_time", "num_running", "num_waiting"):
        assert getattr(fleet, name).tolist() == getattr(alone, name).tolist(), name
    assert {name: gaps.tolist() for name, gaps in fleet.gaps_s.items()} == {
        name: gaps.tolist() for name, gaps in alone.gaps_s.items()
    }
    ours, theirs = run_metrics(fleet).to_dict(), run_metrics(alone).to_dict()
    assert {**ours, "decision_ms": None} == {**theirs, "decision_ms": None} or fleet.end_s != alone.end_s


def test_replicas_serve_side_by_side_each_at_its_own_pace():
    instance = instance_of(asked("a", 0.0), asked("b", 1.0))
    router = Script("r0", "r1")
    run = simulate_fleet(instance, specs(instance, PLAIN, SLOW), router)
    assert rows(run) == [
        (0.0, 0, {0: 6}),
        (1.0, 1, {1: 6}),
        (16.0, 0, {0: 1}),
        (27.0, 0, {0: 1}),
        (27.0, 1, {1: 1}),
        (48.0, 1, {1: 1}),
    ]
    assert run.evaluation.legal
    assert router.calls == [(0.0, "a", ["r0", "r1"]), (1.0, "b", ["r0", "r1"])]
    assert router.ends == ["a", "b"]
    assert run.replica_s == 2 * 69
    assert run_metrics(run).utilisation == pytest.approx((16 + 22 + 26 + 42) / 138)


def test_each_round_is_routed_anew():
    instance = instance_of(asked("a", 0.0, Stage(6, 1, "chat"), Stage(2, 1, "chat", cached_tokens=7, pause_s=4.0)))
    router = Script("r0", "r1")
    run = simulate_fleet(instance, specs(instance, PLAIN, PLAIN), router)
    assert rows(run) == [(0.0, 0, {0: 6}), (20.0, 1, {0: 2})]
    assert [now_s for now_s, *_ in router.calls] == [0.0, 20.0]
    assert run.evaluation.finished.all()


def test_a_request_that_is_held_back_is_asked_about_again():
    instance = instance_of(asked("a", 0.0))
    router = Script(Placement(None, wake_s=3.0), Placement(None, wake_s=3.5), "r0")
    run = simulate_fleet(instance, specs(instance, PLAIN), router)
    assert [now_s for now_s, *_ in router.calls] == [0.0, 3.0, 3.5]
    assert run.schedule.start_s[0] == 3.5


def test_who_is_held_back_for_good_ends_the_run_unserved():
    instance = instance_of(asked("a", 0.0))
    run = simulate_fleet(instance, specs(instance, PLAIN), Script(Placement(None)))
    assert not run.finished.any()
    assert run.rejected == ()
    assert len(run.schedule) == 0

    class Never:
        name = "never"

        def route(self, job, replicas, now_s):
            return Placement(None, wake_s=now_s + 0.1)

    assert not simulate_fleet(instance, specs(instance, PLAIN), Never()).finished.any()


def test_a_placement_without_promise_is_best_effort():
    instance = instance_of(asked("a", 0.0))
    run = simulate_fleet(instance, specs(instance, PLAIN), Script(Placement("r0", best_effort=True)))
    assert run.num_demotions == 1
    assert run.schedule.admitted == ()
    assert run.on_time.all()  # on time all the same


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (Placement("r7"), "'r7' is not one of r0"),
        (Placement(None, wake_s=0.0), "asked again at 0.000000 s, which is not later"),
        (Placement(None, wake_s=math.nan), "not later"),
    ],
)
def test_an_illegal_placement_is_stopped(answer, rule):
    instance = instance_of(asked("a", 0.0))
    with pytest.raises(IllegalPlacementError, match=rule) as caught:
        simulate_fleet(instance, specs(instance, PLAIN), Script(answer))
    assert "router 'script'" in str(caught.value)
    assert "request 'a' at 0.000000 s" in str(caught.value)


class Refusing:
    """Sends everybody away, at once or after some batches of prefill."""

    name = "refusing"

    def __init__(self, batches=0):
        self.batches = batches

    def decide(self, snapshot):
        jobs = [*snapshot.running, *snapshot.waiting]
        if self.batches:
            self.batches -= 1
            return Allocation([(jobs[0], 1)])
        return Allocation(rejected=jobs)


def test_a_refused_request_hops_and_is_rejected_when_all_refuse():
    instance = instance_of(asked("a", 0.0))
    refusing = ReplicaSpec(PLAIN, Refusing)
    router = Script("r1", "r0")
    run = simulate_fleet(instance, [*specs(instance, PLAIN), refusing], router)
    assert router.calls == [(0.0, "a", ["r0", "r1"]), (0.0, "a", ["r0"])]
    assert run.finished.all()
    assert (run.num_hops, run.rejected) == (1, ())
    run = simulate_fleet(instance, [refusing, refusing], Script("r1", "r0"))
    assert (run.num_hops, run.rejected) == (1, (0,))


def test_who_hops_leaves_its_kv_behind():
    instance = instance_of(asked("a", 0.0))
    run = simulate_fleet(
        instance, [ReplicaSpec(PLAIN, lambda: Refusing(2)), *specs(instance, PLAIN)], Script("r0", "r1")
    )
    assert rows(run)[:3] == [(0.0, 0, {0: 1}), (11.0, 0, {0: 1}), (22.0, 1, {0: 6})]
    assert [(move.start_s, move.source, move.target) for move in run.schedule.moves] == [(22.0, 0, None)]
    assert run.evaluation.legal
    assert run.schedule.preempted == {}


def test_after_its_first_token_a_refused_request_is_rejected():
    instance = instance_of(asked("a", 0.0))
    run = simulate_fleet(instance, [ReplicaSpec(PLAIN, lambda: Refusing(6)), *specs(instance, PLAIN)], Script("r0"))
    assert run.rejected == (0,)
    assert run.num_hops == 0


def test_a_request_too_large_for_some_replicas_is_offered_the_others():
    small = replace(PLAIN, kv_blocks=1)
    instance = instance_of(asked("a", 0.0), asked("b", 0.0, Stage(500, 3, "chat")))
    router = Script("r1")
    run = simulate_fleet(instance, specs(instance, small, PLAIN), router)
    assert router.calls == [(0.0, "a", ["r1"])]
    assert run.rejected == (1,)


class TestDisaggregated:
    """One replica prefills, one decodes; KV takes 1 s and 0.5 s a token."""

    OPTIONS = FleetOptions(transfer=KvTransfer(0.5, 1.0))

    def run(self, *requests, router=None, roles=(Role.PREFILL, Role.DECODE), **more):
        instance = instance_of(*requests)
        router = router or Script("r0", "r1")
        return simulate_fleet(instance, specs(instance, *roles), router, replace(self.OPTIONS, **more)), router

    def test_the_prompt_here_the_rest_there(self):
        run, router = self.run(asked("a", 0.0))
        assert rows(run) == [(0.0, 0, {0: 6}), (20.0, 1, {0: 1}), (31.0, 1, {0: 1})]
        assert router.calls == [(0.0, "a", ["r0"]), (16.0, "a", ["r1"])]
        (move,) = run.schedule.moves
        assert (move.source, move.start_s, move.target, move.end_s) == (0, 16.0, 1, 20.0)
        assert run.num_transfers == 1
        assert run.evaluation.legal

    def test_one_token_needs_no_transfer(self):
        run, _ = self.run(asked("a", 0.0, Stage(6, 1, "chat")), router=Script("r0"))
        assert run.finished.all()
        assert run.num_transfers == 0

    def test_a_replica_that_prefills_needs_no_room_for_outputs(self):
        instance = instance_of(asked("a", 0.0, Stage(6, 30, "chat")), engine=replace(PLAIN, kv_blocks=2))
        pair = [
            replica_spec(instance, "vllm-fcfs", lengths="none", role=Role.PREFILL),
            replica_spec(instance, "vllm-fcfs", lengths="none", role=Role.DECODE, engine=PLAIN),
        ]
        run = simulate_fleet(instance, pair, Script("r0", "r1"), self.OPTIONS)
        assert run.finished.all()
        assert run.evaluation.legal
        swapped = simulate_fleet(
            instance,
            [replace(pair[0], engine=PLAIN), replace(pair[1], engine=instance.engine)],
            Script("r0"),
            self.OPTIONS,
        )
        assert swapped.rejected == (0,)  # nobody could decode it

    def test_the_source_holds_kv_while_it_travels(self):
        class Probe(Script):
            def route(self, job, replicas, now_s):
                self.free.append((now_s, replicas[0].free_kv_blocks))
                return super().route(job, replicas, now_s)

        router = Probe("r0", "r1", "r0", "r0", "r1", "r1")
        router.free = []
        single = Stage(6, 1, "chat")
        run, _ = self.run(asked("a", 0.0), asked("b", 18.0, single), asked("c", 40.0, single), router=router)
        assert router.free == [(0.0, 100), (16.0, 100), (18.0, 98), (40.0, 100)]
        assert run.evaluation.legal

    def test_a_request_on_its_way_waits_at_the_target(self):
        seen = []

        class Probe(Script):
            def route(self, job, replicas, now_s):
                seen.append((now_s, [[other.id for other in view.waiting] for view in replicas]))
                return super().route(job, replicas, now_s)

        # The first token of b comes while a is on its way.
        run, _ = self.run(
            asked("a", 0.0),
            asked("b", 7.0, Stage(1, 2, "chat")),
            router=Probe("r0", "r1", "r2", "r2"),
            roles=(Role.PREFILL, Role.PREFILL, Role.DECODE),
        )
        assert run.finished.all()
        assert seen[-2:] == [(16.0, [[]]), (18.0, [["a"]])]

    def test_a_target_that_fails_meanwhile_is_replaced(self):
        run, router = self.run(
            asked("a", 0.0),
            router=Script("r0", "r1", "r2"),
            roles=(Role.PREFILL, Role.DECODE, Role.DECODE),
            faults=(Fault(FaultKind.FAIL, 1, 18.0, 100.0),),
        )
        assert router.calls[-1] == (20.0, "a", ["r2"])
        assert [(move.target, move.start_s, move.end_s) for move in run.schedule.moves] == [(2, 20.0, 24.0)]
        assert run.finished.all()
        assert run.evaluation.legal

    def test_a_source_that_fails_meanwhile_takes_the_request_with_it(self):
        run, _ = self.run(asked("a", 0.0), faults=(Fault(FaultKind.FAIL, 0, 18.0, 100.0),))
        assert run.failed == (0,)
        assert run.num_transfers == 0
        assert run.evaluation.legal


class TestFaults:
    """Two replicas."""

    def run(self, router, *faults, requests=(), policy="vllm-fcfs"):
        instance = instance_of(*(requests or (asked("a", 0.0),)))
        options = FleetOptions(faults=faults)
        return simulate_fleet(instance, specs(instance, PLAIN, PLAIN, policy=policy), router, options)

    def test_before_its_first_token_a_request_hops(self):
        router = Script("r0", "r1")
        run = self.run(router, Fault(FaultKind.FAIL, 0, 7.0, 50.0))
        assert router.calls == [(0.0, "a", ["r0", "r1"]), (7.0, "a", ["r1"])]
        assert rows(run)[0] == (7.0, 1, {0: 6})  # the batch that was cut off is no batch
        assert run.finished.all()
        assert run.num_hops == 1
        assert run.evaluation.legal

    def test_after_it_the_request_is_lost(self):
        run = self.run(Script("r0"), Fault(FaultKind.FAIL, 0, 17.0, 50.0))
        assert run.failed == (0,)
        assert not run.finished.any()
        assert run.rejected == ()
        assert run.evaluation.legal

    def test_a_replica_comes_back_empty(self):
        router = Script("r0", "r1", "r0")
        requests = (asked("a", 0.0), asked("b", 60.0))
        run = self.run(router, Fault(FaultKind.FAIL, 0, 7.0, 50.0), requests=requests)
        assert router.calls[-1] == (60.0, "b", ["r0", "r1"])
        assert run.finished.all()
        assert [replica.up_s for replica in run.fleet.replicas] == [
            ((-math.inf, 7.0), (57.0, math.inf)),
            ((-math.inf, math.inf),),
        ]

    def test_requests_wait_for_the_only_replica(self):
        instance = instance_of(asked("a", 0.0))
        options = FleetOptions(faults=(Fault(FaultKind.FAIL, 0, 7.0, 50.0),))
        run = simulate_fleet(instance, specs(instance, PLAIN), Script("r0", "r0"), options)
        assert rows(run)[0] == (57.0, 0, {0: 6})
        assert run.finished.all()
        gone = FleetOptions(faults=(Fault(FaultKind.FAIL, 0, 7.0, math.inf),))
        run = simulate_fleet(instance, specs(instance, PLAIN), Script("r0"), gone)
        assert not run.finished.any()
        assert (run.rejected, run.failed) == ((), ())

    def test_batches_of_a_slow_replica_take_longer(self):
        run = self.run(Script("r0"), Fault(FaultKind.SLOW, 0, 10.0, 10.0, factor=5.0))
        assert rows(run) == [(0.0, 0, {0: 6}), (16.0, 0, {0: 1}), (71.0, 0, {0: 1})]
        assert run.schedule.duration_s.tolist() == [16.0, 55.0, 11.0]
        assert run.evaluation.legal

    def test_tokens_of_a_replica_that_is_cut_off_arrive_late(self):
        router = Script("r0", "r1")
        requests = (asked("a", 0.0), asked("b", 20.0))
        run = self.run(router, Fault(FaultKind.CUT_OFF, 0, 10.0, 95.0), requests=requests)
        assert router.calls[-1] == (20.0, "b", ["r1"])
        assert run.evaluation.legal
        stage = run.evaluation.stages[0][0]
        assert (stage.first_token_s, stage.last_token_s) == (105.0, 105.0)
        assert run.on_time.tolist() == [False, True]
        assert router.ends == ["b", "a"]
        assert rows(run)[-1][0] < 60  # the engine itself went on

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (lambda: Fault(FaultKind.FAIL, 0, -1.0, 1.0), "at_s"),
            (lambda: Fault(FaultKind.FAIL, 0, 1.0, 0.0), "for_s"),
            (lambda: Fault(FaultKind.SLOW, 0, 1.0, math.inf), "infinite only for a failure"),
            (lambda: Fault(FaultKind.SLOW, 0, 1.0, 1.0, factor=0.0), "factor"),
        ],
    )
    def test_senseless_faults_are_refused(self, fault, message):
        with pytest.raises(InvalidInputError, match=message):
            fault()

    def test_faults_of_a_fleet_must_fit_it(self):
        with pytest.raises(InvalidInputError, match="fault on replica 2"):
            self.run(Script(), Fault(FaultKind.FAIL, 2, 1.0, 1.0))
        with pytest.raises(InvalidInputError, match="one after the other"):
            self.run(Script(), Fault(FaultKind.FAIL, 1, 1.0, 2.0), Fault(FaultKind.SLOW, 1, 2.0, 2.0))


def test_fleets_that_cannot_serve_are_refused():
    instance = instance_of(asked("a", 0.0))
    for roles, message in (
        ((), "at least one"),
        ((Role.PREFILL,), "prefill only"),
        ((Role.BOTH, Role.DECODE), "none prefills for it"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            simulate_fleet(instance, specs(instance, *roles), FirstRouter())
    with pytest.raises(InvalidInputError, match="prefix cache"):
        FleetOptions(simulation=SimulationOptions(prefix_cache=True))
    with pytest.raises(InvalidInputError, match="report_every_s"):
        FleetOptions(report_every_s=-1.0)


def test_a_run_is_cut_once_more_are_lost_than_allowed():
    requests = [asked(f"r{i}", 40.0 * i if i < 20 else 800.0 + 0.1 * i) for i in range(60)]
    instance = instance_of(*requests)
    whole = simulate_fleet(instance, specs(instance, PLAIN, PLAIN), RandomRouter(random.Random(1)))
    lost = int((~whole.on_time).sum())
    assert 10 < lost < 60
    for allowed in (0, lost - 1, lost):
        options = FleetOptions(simulation=SimulationOptions(max_lost=allowed))
        run = simulate_fleet(instance, specs(instance, PLAIN, PLAIN), RandomRouter(random.Random(1)), options)
        assert run.cut == (allowed < lost)
        assert run.evaluation.legal
