"""Rules for the size of a fleet, decision by decision, and fleets that follow them."""

import pytest
from test_fleet import PLAIN, Script, asked, instance_of, specs

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Stage
from slo_opt.policies.interface import Job
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.simulate.autoscale import FleetState, ScalingDecision, Served
from slo_opt.simulate.back_pressure import BackPressure
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_spec import FleetOptions, Scaling
from slo_opt.simulate.load_gradient import LoadGradient


def job(name="a", **fields):
    known = {"value": 1.0, "tpot_s": 0.05, "known_tokens": 100, "due_s": 5.0, **fields}
    return Job(name, "chat", "chat", **known)


def view(name, running=(), waiting=()):
    return ReplicaView(name, PLAIN, running=list(running), waiting=list(waiting))


def decoding(**fields):
    return job(decoding=True, computed_tokens=99, emitted_tokens=1, **fields)


def state(now_s, *views, starting=0, held=(), **served):
    return FleetState(now_s, views, {v.id: served.get(v.id, Served()) for v in views}, starting, list(held))


class TestLoadGradient:
    def test_one_idle_replica_stays_in_reserve(self):
        busy, idle = view("r0", [decoding()]), view("r1")
        assert LoadGradient().scale(state(0.0, busy)) == ScalingDecision(start=1)
        assert LoadGradient().scale(state(0.0, busy, starting=1)) == ScalingDecision()
        assert LoadGradient().scale(state(0.0, busy, idle)) == ScalingDecision()
        assert LoadGradient(spare=0).scale(state(0.0, busy)) == ScalingDecision()

    def test_requests_that_are_held_back_bring_replicas(self):
        held = [job("b"), job("c")]
        assert LoadGradient(spare=0).scale(state(0.0, view("r0"), held=held)) == ScalingDecision(start=2)
        assert LoadGradient(spare=0).scale(state(0.0, view("r0"), held=held, starting=2)) == ScalingDecision()

    def test_the_last_that_ran_empty_is_released_after_a_while(self):
        rule = LoadGradient(spare=1, patience_s=10.0)
        views = (view("r0", [decoding()]), view("r1"), view("r2"), view("r3"))
        assert rule.scale(state(0.0, *views)) == ScalingDecision()
        assert rule.scale(state(9.0, *views)) == ScalingDecision()
        assert rule.scale(state(10.0, *views)) == ScalingDecision(drain=("r2", "r3"))

    def test_a_request_meanwhile_starts_the_wait_anew(self):
        rule = LoadGradient(spare=0, patience_s=10.0)
        assert rule.scale(state(0.0, view("r0"))) == ScalingDecision()
        assert rule.scale(state(5.0, view("r0", [decoding()]))) == ScalingDecision()
        assert rule.scale(state(11.0, view("r0"))) == ScalingDecision()
        assert rule.scale(state(21.0, view("r0"))) == ScalingDecision(drain=("r0",))

    def test_senseless_figures_are_refused(self):
        for figures in ({"spare": -1}, {"patience_s": -1.0}):
            with pytest.raises(InvalidInputError, match="expected both >= 0"):
                LoadGradient(**figures)


class TestBackPressure:
    SERVED = Served(num_batches=10, num_tokens=1000, busy_s=1.0)  # 0.1 s between tokens, 1,000 tokens a second

    def test_slow_tokens_bring_a_replica(self):
        pressed = view("r0", [decoding(tpot_s=0.05), decoding(tpot_s=0.2)])
        assert BackPressure().scale(state(1.0, pressed, r0=self.SERVED)) == ScalingDecision(start=1)
        assert BackPressure().scale(state(1.0, pressed, r0=self.SERVED, starting=1)) == ScalingDecision()
        fine = view("r0", [decoding(tpot_s=0.2)])
        assert BackPressure().scale(state(1.0, fine, r0=self.SERVED)) == ScalingDecision()

    def test_best_effort_and_prompts_press_nobody(self):
        for other in (decoding(tpot_s=0.05, value=0.0), job(tpot_s=0.05)):
            assert BackPressure().scale(state(1.0, view("r0", [other]), r0=self.SERVED)) == ScalingDecision()

    def test_falling_throughput_of_a_busy_replica_brings_one(self):
        running = view("r0", [decoding(tpot_s=0.2)])
        rule = BackPressure()
        assert rule.scale(state(1.0, running, r0=self.SERVED)) == ScalingDecision()
        fewer = Served(num_batches=10, num_tokens=800, busy_s=1.0)
        assert rule.scale(state(2.0, running, r0=fewer)) == ScalingDecision(start=1)
        rule = BackPressure()
        rule.scale(state(1.0, running, r0=self.SERVED))
        idle_half = Served(num_batches=5, num_tokens=500, busy_s=0.5)  # less came
        assert rule.scale(state(2.0, running, r0=idle_half)) == ScalingDecision()

    def test_groups_that_wait_past_their_deadline_bring_one_each(self):
        running = view("r0", [decoding(tpot_s=0.2)], [job("w", known_tokens=3000, due_s=5.0)])
        assert BackPressure().scale(state(1.0, running, r0=self.SERVED)) == ScalingDecision()  # until 4 s
        held = [job("h", known_tokens=2000, due_s=5.5)]  # of the same group: until 6 s
        assert BackPressure().scale(state(1.0, running, held=held, r0=self.SERVED)) == ScalingDecision(start=1)
        other = Job("o", "code", "code", 1.0, known_tokens=2000, due_s=5.5)
        assert BackPressure().scale(state(1.0, running, held=[other], r0=self.SERVED)) == ScalingDecision(start=1)
        both = [*held, other]
        assert BackPressure().scale(state(1.0, running, held=both, r0=self.SERVED)) == ScalingDecision(start=2)

    def test_the_emptiest_is_drained_where_the_rest_can_take_its_load(self):
        light = Served(num_batches=10, num_tokens=100, busy_s=0.3)
        views = (view("r0", [decoding(tpot_s=0.1)] * 2), view("r1", [decoding(tpot_s=0.1)]))
        assert BackPressure().scale(state(1.0, *views, r0=light, r1=light)) == ScalingDecision(drain=("r1",))
        heavy = Served(num_batches=10, num_tokens=100, busy_s=0.4)
        assert BackPressure().scale(state(1.0, *views, r0=heavy, r1=heavy)) == ScalingDecision()
        assert BackPressure().scale(state(1.0, views[0], r0=light)) == ScalingDecision()  # the last one

    def test_senseless_figures_are_refused(self):
        with pytest.raises(InvalidInputError, match="low < high"):
            BackPressure(high=0.5, low=0.7)


class Wish:
    """Decides what a list says."""

    name = "wish"

    def __init__(self, *decisions):
        self.decisions = list(decisions)
        self.states = []

    def scale(self, found):
        self.states.append((found.now_s, [v.id for v in found.replicas], found.num_starting, len(found.held)))
        return self.decisions.pop(0) if self.decisions else ScalingDecision()


def scaled(autoscaler, router, *requests, replicas=1, interval_s=5.0, start_up_s=12.0, **bounds):
    instance = instance_of(*requests)
    found = specs(instance, *[PLAIN] * replicas)
    scaling = Scaling(autoscaler, found[0], interval_s, start_up_s, **bounds)
    run = simulate_fleet(instance, found, router, FleetOptions(scaling=scaling))
    assert run.evaluation.legal
    return run


def test_a_replica_serves_after_its_start_up_and_is_paid_for_from_the_decision_on():
    wish = Wish(ScalingDecision(start=1))
    router = Script(Placement(None), "r1")
    run = scaled(wish, router, asked("a", 0.0))
    assert router.calls == [(0.0, "a", ["r0"]), (17.0, "a", ["r0", "r1"])]  # held until someone joins
    assert wish.states[:4] == [
        (5.0, ["r0"], 0, 1),
        (10.0, ["r0"], 1, 1),
        (15.0, ["r0"], 1, 1),
        (20.0, ["r0", "r1"], 0, 0),
    ]
    assert [(stay.since_s, stay.until_s) for stay in run.stays][1] == (5.0, float("inf"))
    assert run.end_s == 17.0 + 38.0
    assert run.replica_s == 55.0 + 50.0


def test_a_draining_replica_ends_what_it_has_and_leaves():
    wish = Wish(ScalingDecision(drain=("r0",)))
    router = Script("r0", "r1", "r1")
    run = scaled(wish, router, asked("a", 0.0), asked("b", 7.0), asked("c", 50.0), replicas=2)
    assert [ids for _, _, ids in router.calls] == [["r0", "r1"], ["r1"], ["r1"]]
    assert run.finished.all()
    assert [stay.until_s for stay in run.stays] == [38.0, float("inf")]
    assert run.fleet.replicas[0].up_s[-1][1] == 38.0
    assert run.replica_s == 38.0 + run.end_s


def test_bounds_hold_whatever_the_autoscaler_says():
    wish = Wish(ScalingDecision(start=9), ScalingDecision(drain=tuple(f"r{k}" for k in range(9))))
    run = scaled(wish, Script("r0"), asked("a", 0.0), most=3, least=2, start_up_s=1.0)
    assert len(run.stays) == 3
    assert sum(stay.until_s < float("inf") for stay in run.stays) == 1


def test_load_gradient_follows_a_burst():
    class Fill(Script):
        """The first idle replica, or none yet."""

        def route(self, job, replicas, now_s):
            free = [v.id for v in replicas if v.idle]
            return Placement(free[0] if free else None)

    burst = [asked(f"b{k}", 10.0 + 0.1 * k) for k in range(6)]
    later = [asked(f"l{k}", 300.0 + 60 * k) for k in range(5)]
    run = scaled(LoadGradient(patience_s=20.0), Fill(), *burst, *later, interval_s=1.0, start_up_s=3.0)
    assert run.finished.all()
    grown = sum(stay.since_s > 0 for stay in run.stays)
    assert grown >= 5
    gone = [stay for stay in run.stays if stay.until_s < run.end_s]
    assert len(gone) >= 4
    assert run.replica_s < 0.7 * len(run.stays) * run.end_s


def test_a_run_ends_though_the_autoscaler_is_asked_for_ever():
    run = scaled(Wish(), Script(Placement(None)), asked("a", 0.0, Stage(6, 3, "chat")))
    assert not run.finished.any()


def test_senseless_scaling_is_refused():
    instance = instance_of(asked("a", 0.0))
    template = specs(instance, PLAIN)[0]
    for bad in ({"interval_s": 0.0}, {"start_up_s": -1.0}, {"least": 0}, {"least": 3, "most": 2}):
        with pytest.raises(InvalidInputError, match="scaling"):
            Scaling(Wish(), template, **bad)


def test_a_run_ends_though_replicas_come_and_go_for_ever():
    class Flapping:
        """Starts one, drains one, in turn."""

        name = "flapping"

        def scale(self, found):
            return ScalingDecision(1, tuple(v.id for v in found.replicas[1:]))

    run = scaled(Flapping(), Script(*[Placement(None)] * 3000), asked("a", 0.0), start_up_s=0.5, interval_s=1.0)
    assert not run.finished.any()
    assert 100 < len(run.stays) < 3000
