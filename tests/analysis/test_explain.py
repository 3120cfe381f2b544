"""Each reason from a case where it is the only one, and figures that hold on a real plan."""

import pytest

from slo_opt import Batch, Instance, Request, Schedule, SloClass, Stage, engine_named, evaluate
from slo_opt.analysis.explain import Explainer, Reason
from slo_opt.domain.engine import EngineModel, RooflinePiece

SLO = SloClass("x", tpot_ms=100, ttft_ms=1000)
# 1 ms a token and nothing else: figures that can be worked out by hand.
PLAIN = EngineModel("plain", "made for this test", (RooflinePiece(1e-3, 0.0),), kv_blocks=100, max_model_len=4000)


def instance_of(*requests: Request, engine: EngineModel = PLAIN, slo: SloClass = SLO) -> Instance:
    return Instance("hand", requests, {"x": slo}, engine)


def request(name: str, arrival_s: float, prompt: int, output: int = 1) -> Request:
    return Request(name, arrival_s, (Stage(prompt, output, "x"),))


def only(instance: Instance, schedule: Schedule):
    explainer = Explainer(instance, schedule)
    assert len(explainer.declined) == 1
    return explainer.explain(explainer.declined[0])


def test_compute_with_its_figures():
    instance = instance_of(request("held", 0.0, 900), request("short", 0.0, 200))
    found = only(instance, Schedule.from_batches([Batch(0.0, (0,), (900,))]))
    assert found.reason is Reason.COMPUTE
    assert found.window_s == (0.0, 1.0)
    assert found.needs_s == pytest.approx(0.200)
    assert found.free_s == pytest.approx(0.100)  # 1 s less the 0.9 s that the served one needs
    assert found.holders == (("held", pytest.approx(0.9)),)
    assert "200.0 ms" in found.text
    assert "100.0 ms" in found.text


def test_served_requests_that_can_wait_do_not_count():
    instance = instance_of(request("first", 0.0, 300), request("later", 0.5, 900))
    # "later" runs from 0.5 to 1.4 and may end at 1.5: 0.1 s of patience. "declined" is due at 1.2.
    declined = request("declined", 0.2, 250)
    instance = instance.with_requests((instance.requests[0], declined, instance.requests[1]))
    found = only(instance, Schedule.from_batches([Batch(0.0, (0,), (300,)), Batch(0.5, (2,), (900,))]))
    # From 0.2 to 1.2: 0.1 s of "first" still run, "later" put off to 0.6 holds 0.6 s.
    assert found.free_s == pytest.approx(0.3)
    assert found.needs_s == pytest.approx(0.25)
    assert found.reason is Reason.PACKING


def test_kv():
    # The served one holds 90 of 100 blocks for a second; time is plenty.
    slow = SloClass("x", tpot_ms=1000, ttft_ms=100_000)
    instance = instance_of(request("held", 0.0, 1440), request("big", 0.0, 320), slo=slow)
    found = only(instance, Schedule.from_batches([Batch(0.0, (0,), (1440,))]))
    assert found.reason is Reason.KV
    assert (found.needs_blocks, found.free_blocks) == (20, 10)


def test_kv_that_never_fits_and_context():
    found = only(instance_of(request("huge", 0.0, 1700)), Schedule.from_batches([]))
    assert found.reason in (Reason.KV, Reason.DEADLINE)
    patient = SloClass("x", tpot_ms=1000, ttft_ms=100_000)
    found = only(instance_of(request("huge", 0.0, 1700), slo=patient), Schedule.from_batches([]))
    assert found.reason is Reason.KV
    found = only(instance_of(request("endless", 0.0, 4000), slo=patient), Schedule.from_batches([]))
    assert found.reason is Reason.CONTEXT


def test_deadline_below_the_zero_load_time():
    found = only(instance_of(request("hopeless", 0.0, 1200)), Schedule.from_batches([]))
    assert found.reason is Reason.DEADLINE
    assert "1200.0 ms" in found.text


def test_deadline_of_a_decode_that_no_engine_keeps_up():
    engine = engine_named("opt-6.7b-a100")  # 25 ms a step
    fast = SloClass("x", tpot_ms=10, ttft_ms=200)
    found = only(instance_of(request("fast", 0.0, 100, 200), engine=engine, slo=fast), Schedule.from_batches([]))
    assert found.reason is Reason.DEADLINE
    assert "alone on an idle engine" in found.text or "no schedule" in found.text


def test_an_idle_engine_has_room_and_says_so():
    found = only(instance_of(request("forgotten", 0.0, 500)), Schedule.from_batches([]))
    assert found.reason is Reason.PACKING
    assert found.needs_s == pytest.approx(0.5)
    assert found.free_s == pytest.approx(1.0)


def test_the_roomiest_replica_speaks():
    instance = Instance("hand", (request("a", 0.0, 900), request("b", 0.0, 200)), {"x": SLO}, PLAIN, num_replicas=2)
    found = only(instance, Schedule.from_batches([Batch(0.0, (0,), (900,))]))
    assert found.reason is Reason.PACKING  # replica 1 is idle


def test_every_declined_request_of_a_real_plan(burst: Instance, burst_plan: Schedule):
    explainer = Explainer(burst, burst_plan)
    evaluation = evaluate(burst, burst_plan)
    declined = explainer.declined
    assert len(declined) == int((evaluation.counted & ~evaluation.attained).sum()) > 10
    reasons = set()
    for index in declined:
        found = explainer.explain(index)
        reasons.add(found.reason)
        assert found.request_id == burst.requests[index].id
        assert found.needs_s is not None
        assert found.free_s is not None
        assert 0 <= found.free_s <= found.window_s[1] - found.window_s[0] + 1e-9
        assert (found.reason is Reason.COMPUTE) == (found.needs_s > found.free_s)
        assert 0 < len(found.holders) <= 3
    assert Reason.COMPUTE in reasons
