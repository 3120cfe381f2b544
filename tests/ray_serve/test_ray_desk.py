"""Where requests are given to replicas."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.ray_serve.arrival import Arrival
from slo_opt.engine_bridge.ray_serve.desk import Desk, desk_of
from slo_opt.engine_bridge.ray_serve.plan import ServePlan
from slo_opt.engine_bridge.ray_serve.stats import ReplicaStats
from slo_opt.engine_bridge.router.reports import EngineReport
from slo_opt.engine_bridge.router.shape import Shape
from slo_opt.engine_bridge.slo_fields import RequestSlo
from slo_opt.policies.interface import Standing
from slo_opt.policies.lengths import QuantileLengths
from slo_opt.routing.interface import Placement
from slo_opt.routing.registry import RoutingContext, make_router

ENGINE = replace(engine_named("llama-3-8b-h100"), kv_blocks=1000, block_size_tokens=16)
CONFIG = BridgeConfig()
SLO = RequestSlo("default", 0.05, ttft_s=1.0)
REPLICAS = ("a", "b", "c")


def desk_with(policy, max_hold_s=10.0):
    return Desk(policy, ENGINE, CONFIG, max_hold_s)


def desk_named(name):
    return desk_with(make_router(name, RoutingContext(CONFIG.slo_classes(), QuantileLengths())))


def arrival(prompt_tokens=100, slo=SLO):
    return Arrival(slo, Shape("m", prompt_tokens))


class Told:
    """A policy that answers as it is told."""

    name = "told"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.ends = []

    def route(self, job, replicas, now_s):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def observe(self, end):
        self.ends.append(end)


def requests_at(desk):
    return {id: view.num_requests for id, view in desk.views().items()}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 3000), st.booleans()),
        st.tuples(st.just("choose"), st.integers(0, 9), st.integers(1, 3)),
        st.tuples(st.just("pass"), st.integers(0, 9), st.integers(0, 4)),
        st.tuples(st.just("take back"), st.integers(0, 9), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 9), st.integers(0, 50)),
        st.tuples(st.just("report"), st.integers(0, 2), st.integers(0, 30)),
        st.tuples(st.just("keep"), st.integers(1, 3), st.none()),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", ["round-robin", "least-loaded", "lmetric", "llm-d-best-fit", "polyserve"])
@given(steps=STEPS)
def test_whatever_happens_each_request_is_in_the_books_once(name, steps):
    desk, ids, sent, now_s = desk_named(name), [], {}, 0.0
    for step, first, second in steps:
        now_s += 0.01
        id = ids[first % len(ids)] if ids and isinstance(first, int) else "unknown"
        if step == "arrive":
            ids.append(desk.arrive(arrival(first, replace(SLO, best_effort=second)), now_s))
        elif step == "choose":
            offered = REPLICAS[:second]
            sent.pop(id, None)
            placement = desk.choose(id, offered, now_s)
            assert placement.replica in (*offered, None)
            if placement.replica is not None and id in ids:
                sent[id] = placement.replica
        elif step == "pass":
            desk.pass_on(id, second, now_s)
        elif step == "take back":
            desk.take_back(id, now_s)
            sent.pop(id, None)
        elif step == "leave":
            desk.leave(id, now_s, tokens=second)
            sent.pop(id, None)
            ids = [other for other in ids if other != id]
        elif step == "report":
            report = EngineReport(running=0, waiting=0, free_kv_blocks=second)
            desk.report(REPLICAS[first], ReplicaStats(1000 + now_s, report).to_dict(), now_s, 1000 + now_s)
        else:
            desk.keep(REPLICAS[:first])
        counts = requests_at(desk)
        assert sum(counts.values()) == len(sent)
        assert all(list(sent.values()).count(replica) == count for replica, count in counts.items())
    assert desk.num_failures == 0


def test_a_request_that_is_chosen_for_again_is_booked_at_its_new_place_alone():
    desk = desk_with(Told(Placement("a"), Placement("b")))
    id = desk.arrive(arrival(), 0.0)
    assert desk.choose(id, REPLICAS, 0.0).replica == "a"
    assert desk.choose(id, ("b", "c"), 0.1).replica == "b"
    assert {replica for replica, count in requests_at(desk).items() if count} == {"b"}


def test_who_is_held_back_too_long_goes_where_the_fewest_are_without_a_promise():
    desk = desk_with(Told(Placement("a"), Placement(None, wake_s=math.inf)), max_hold_s=5.0)
    first = desk.arrive(arrival(), 0.0)
    assert desk.choose(first, ("a", "b"), 0.0) == Placement("a")
    held = desk.arrive(arrival(), 1.0)
    assert desk.choose(held, ("a", "b"), 1.0).replica is None
    assert desk.latest_s(held) == 6.0
    assert desk.promised(held)
    assert desk.choose(held, ("a", "b"), 6.0) == Placement("b", best_effort=True)
    assert not desk.promised(held)


def test_a_placement_without_a_promise_shows_in_the_books():
    desk = desk_with(Told(Placement("a", best_effort=True)))
    desk.choose(desk.arrive(arrival(), 0.0), REPLICAS, 0.0)
    assert [job.standing for job in desk.views()["a"].waiting] == [Standing.BEST_EFFORT]


@pytest.mark.parametrize("answer", [ValueError("broken"), Placement("elsewhere")])
def test_a_policy_that_fails_costs_nobody_a_request(answer, caplog):
    desk = desk_with(Told(Placement("a"), answer))
    desk.choose(desk.arrive(arrival(), 0.0), ("a", "b"), 0.0)
    for _ in range(3):
        assert desk.choose(desk.arrive(arrival(), 0.0), ("a", "b"), 0.0).replica in ("a", "b")
    assert desk.num_failures == 3
    assert len([record for record in caplog.records if "routing policy failed" in record.message]) == 1


def test_a_request_that_nobody_announced_is_served_and_not_booked():
    desk = desk_with(Told(ValueError("not asked")))
    assert desk.choose("unknown", REPLICAS, 0.0).replica in REPLICAS
    assert requests_at(desk) == dict.fromkeys(REPLICAS, 0)


def test_tokens_that_pass_make_a_request_run():
    desk = desk_with(Told(Placement("a")))
    id = desk.arrive(arrival(100), 0.0)
    desk.choose(id, REPLICAS, 0.0)
    desk.pass_on(id, 1, 0.2)
    (job,) = desk.views()["a"].running
    assert (job.decoding, job.emitted_tokens, job.kv_blocks) == (True, 1, 7)
    desk.leave(id, 0.3)
    assert desk.views()["a"].idle


def test_what_ended_is_learned_from():
    policy = Told(Placement("a"))
    desk = desk_with(policy)
    id = desk.arrive(Arrival(SLO, Shape("m", 0, 400)), 0.0)
    desk.choose(id, REPLICAS, 0.0)
    desk.pass_on(id, 3, 2.0)
    desk.leave(id, 2.1, tokens=3, prompt_tokens=200)
    desk.leave(id, 2.2, tokens=3)
    assert [(end.round_slo, end.output_tokens, end.missed) for end in policy.ends] == [("default", 3, True)]
    again = desk.arrive(Arrival(SLO, Shape("m", 0, 400)), 3.0)
    desk.choose(again, REPLICAS, 3.0)
    assert desk.views()["a"].waiting[0].prompt_tokens > 100  # 4 bytes a token before, fewer since


def test_a_report_corrects_the_books_once():
    desk = desk_with(Told(Placement("a")))
    report = EngineReport(running=2, waiting=1, free_kv_blocks=400, kv_blocks=500, block_size_tokens=32)
    stats = ReplicaStats(50.0, report, 4096).to_dict()
    desk.report("a", stats, 10.0, 50.2)
    view = desk.views()["a"]
    assert (view.engine.kv_blocks, view.engine.block_size_tokens, view.engine.max_model_len) == (500, 32, 4096)
    assert (view.num_requests, view.free_kv_blocks) == (3, 400)
    version = view.version
    desk.report("a", stats, 11.0, 51.2)
    assert desk.views()["a"].version == version


def test_replicas_that_are_gone_are_forgotten_when_their_requests_have_left():
    desk = desk_with(Told(Placement("a"), Placement("b")))
    first, second = desk.arrive(arrival(), 0.0), desk.arrive(arrival(), 0.0)
    desk.choose(first, REPLICAS, 0.0)
    desk.choose(second, REPLICAS, 0.0)
    desk.keep(["b"])
    assert set(requests_at(desk)) == {"a", "b"}
    desk.leave(first, 1.0)
    desk.keep(["b"])
    assert set(requests_at(desk)) == {"b"}


def test_equal_plans_share_a_desk(monkeypatch):
    monkeypatch.delenv("SLO_OPT_CONFIG", raising=False)
    plan = ServePlan("m", policy="round-robin")
    assert desk_of(plan.to_dict()) is desk_of(json.loads(json.dumps(plan.to_dict())))
    assert desk_of(plan.to_dict()) is not desk_of(replace(plan, model="n").to_dict())
