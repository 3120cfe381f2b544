"""Metrics against a run worked out by hand, and against a recount of every token from the schedule."""

import json
import math
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import RandomPolicy, drawn_instance, named

from slo_opt.analysis.timeline import unroll
from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import Allocation
from slo_opt.simulate.metrics import IllegalRunError, percentiles, run_metrics
from slo_opt.simulate.simulator import SimulationOptions, simulate

ENGINE = EngineModel("hand", "by hand", (RooflinePiece(0.001, 0.009),), block_size_tokens=8, kv_blocks=100)
CLASSES = {
    "fast": SloClass("fast", tpot_ms=20, ttft_ms=25, weight=3.0),
    "slow": SloClass("slow", tpot_ms=20, ttft_ms=50),
    "free": SloClass("free", tpot_ms=100, ttft_ms=1000, best_effort=True),
}


class Idle:
    """Serves nobody."""

    name = "idle"

    def decide(self, snapshot) -> Allocation:
        """Nothing."""
        return Allocation()


@pytest.fixture
def by_hand() -> Instance:
    """Three batches: prompt a (11 tokens, 20 ms); a with prompt b (22 tokens, 31 ms); a and b (2 tokens, 11 ms)."""
    a = Request("a", 0.0, (Stage(11, 3, "fast"),))
    b = Request("b", 0.010, (Stage(21, 2, "slow"),))
    return Instance("by hand", (a, b), CLASSES, ENGINE)


def test_a_run_worked_out_by_hand(by_hand: Instance):
    run = simulate(by_hand, named("vllm-fcfs", by_hand))
    metrics = run_metrics(run)
    assert run.schedule.start_s.tolist() == pytest.approx([0.0, 0.020, 0.051])
    fast, slow = metrics.classes
    # a: tokens at 20, 51, 62 ms, due at 25, 45, 65. b: tokens at 51, 62 ms, due at 60, 80.
    assert (fast.name, fast.offered, fast.admitted, fast.attained, fast.attainment) == ("fast", 1, 1, 0, 0.0)
    assert (slow.name, slow.offered, slow.admitted, slow.attained, slow.attainment) == ("slow", 1, 1, 1, 1.0)
    assert [fast.ttft_ms.p50, fast.tpot_ms.p50, fast.itl_ms.p50] == pytest.approx([20, 21, 21])
    assert [slow.ttft_ms.p99, slow.tpot_ms.p99, slow.itl_ms.p99] == pytest.approx([41, 11, 11])
    total = metrics.total
    assert (total.offered, total.attained, total.value, total.offered_value) == (2, 1, 1.0, 4.0)
    assert total.itl_ms.count == 3
    assert [total.ttft_ms.p50, total.itl_ms.p50] == pytest.approx([30.5, 11])
    assert metrics.span_s == pytest.approx(0.062)
    assert metrics.drain_s == pytest.approx(0.052)
    assert metrics.offered_rps == pytest.approx(200)
    assert total.goodput_rps == pytest.approx(1 / 0.062)
    assert total.goodput_tokens_per_s == pytest.approx(2 / 0.062)
    assert total.output_tokens_per_s == pytest.approx(5 / 0.062)
    assert metrics.busy_s == pytest.approx(0.062)
    assert metrics.utilisation == pytest.approx(1)
    assert (metrics.num_batches, metrics.num_tokens) == (3, 35)
    assert metrics.peak_kv_blocks == 5  # a holds 13 tokens, b 22
    assert metrics.drained
    assert metrics.decision_ms.count == 3


def test_best_effort_is_in_no_sum(by_hand: Instance):
    free = Request("c", 0.010, (Stage(30, 4, "free"),))
    instance = by_hand.with_requests((*by_hand.requests, free))
    metrics = run_metrics(simulate(instance, named("vllm-fcfs", instance)))
    row = next(row for row in metrics.classes if row.name == "free")
    assert (row.requests, row.finished, row.offered, row.admitted, row.attained) == (1, 1, 0, 0, 0)
    assert row.attainment is None
    assert row.ttft_ms.count == 1
    assert row.itl_ms.count == 3
    assert (metrics.total.requests, metrics.total.offered) == (2, 2)
    assert metrics.total.ttft_ms.count == 2
    assert metrics.total.itl_ms.count == 3


def test_nobody_served(by_hand: Instance):
    metrics = run_metrics(simulate(by_hand, Idle()))
    assert (metrics.total.offered, metrics.total.admitted, metrics.total.attained) == (2, 0, 0)
    assert metrics.total.attainment == 0
    assert metrics.total.attainment_admitted is None
    assert metrics.total.ttft_ms.p99 is None
    assert not metrics.drained
    assert metrics.num_unfinished == 2
    assert metrics.utilisation == 0
    alone = by_hand.with_requests(by_hand.requests[:1])
    assert run_metrics(simulate(alone, Idle())).total.goodput_rps is None  # a run without length has no rates


def test_what_the_engine_can_never_hold_is_rejected(by_hand: Instance):
    engine = replace(ENGINE, kv_blocks=2)
    huge = Request("huge", 0.005, (Stage(100, 2, "fast"),))
    first, second = by_hand.requests
    instance = replace(by_hand, engine=engine, requests=(first, huge, replace(second, stages=(Stage(9, 2, "slow"),))))
    metrics = run_metrics(simulate(instance, named("vllm-fcfs", instance)))
    assert (metrics.num_rejected, metrics.num_unfinished, metrics.drained) == (1, 0, True)
    assert (metrics.total.offered, metrics.total.admitted) == (3, 2)


def test_an_illegal_run_has_no_metrics(by_hand: Instance):
    run = simulate(by_hand, named("vllm-fcfs", by_hand))
    early = run.schedule.start_s.copy()
    early[1] -= 0.001
    with pytest.raises(IllegalRunError, match="overlap"):
        run_metrics(replace(run, schedule=replace(run.schedule, start_s=early)))


@pytest.mark.parametrize("values", [[1.0], [0.3, 0.1, 0.2], list(range(100))])
def test_percentiles_are_in_milliseconds_and_linear(values: list[float]):
    found = percentiles(values)
    ordered = sorted(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        assert value == pytest.approx(1e3 * (low + (place - math.floor(place)) * (high - low)))


def recounted(instance: Instance, run) -> tuple[dict, dict, dict]:
    """Latencies in seconds by class, from the tokens of the unrolled schedule alone."""
    timeline = unroll(instance, run.schedule)
    tokens: dict[tuple[int, int], list[float]] = defaultdict(list)
    order = zip(timeline.token_request.tolist(), timeline.token_stage.tolist(), timeline.token_s.tolist(), strict=True)
    for request, stage, at_s in order:
        tokens[request, stage].append(at_s)
    ttft_s, tpot_s, itl_s = defaultdict(list), defaultdict(list), defaultdict(list)
    for i, request in enumerate(instance.requests):
        name, last_s = instance.slo_of(request).name, request.arrival_s
        for k, stage in enumerate(request.stages):
            times_s = tokens.get((i, k), [])
            if not times_s:
                break
            if stage.prompt_tokens:
                ttft_s[name].append(times_s[0] - last_s - stage.pause_s)
                since_s, times_s = times_s[0], times_s[1:]
            else:
                since_s = last_s
            itl_s[name] += np.diff([since_s, *times_s]).tolist()
            if times_s and len(tokens[i, k]) == stage.output_tokens:
                tpot_s[name].append((times_s[-1] - since_s) / len(times_s))
            last_s = times_s[-1] if times_s else since_s
            if len(tokens[i, k]) < stage.output_tokens:
                break
    return ttft_s, tpot_s, itl_s


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_metrics_are_those_recounted_from_the_schedule(seed: int):
    rng = random.Random(seed)
    instance = drawn_instance(rng)
    noise, slowdown = rng.choice([(0.0, 1.0), (0.2, 1.0), (0.0, 1.3)])
    options = SimulationOptions(seed, noise, slowdown, rng.choice([0.0, 0.0, 0.7]))
    policy = rng.choice([RandomPolicy(rng, reject=True), RandomPolicy(rng), named("vllm-fcfs", instance)])
    run = simulate(instance, policy, options)
    metrics = run_metrics(run)
    json.dumps(metrics.to_dict(), allow_nan=False)
    found = recounted(instance, run)
    for row in metrics.classes:
        for times, seconds in zip((row.ttft_ms, row.tpot_ms, row.itl_ms), found, strict=True):
            assert times.count == len(seconds[row.name])
            if times.count:
                expected = 1e3 * np.percentile(seconds[row.name], (50, 90, 99))
                assert [times.p50, times.p90, times.p99] == pytest.approx(expected.tolist(), abs=1e-6)
        assert 0 <= row.attained <= row.offered <= row.requests
        assert row.attained <= row.finished
        assert row.admitted <= row.offered
    for field in ("offered", "admitted", "attained"):
        assert sum(getattr(row, field) for row in metrics.classes) == getattr(metrics.total, field)
    under_slo = [row for row in metrics.classes if row.offered]
    for field in ("ttft_ms", "tpot_ms", "itl_ms"):
        assert sum(getattr(row, field).count for row in under_slo) == getattr(metrics.total, field).count
    assert metrics.total.attained == int(run.evaluation.attained.sum())
    assert metrics.peak_kv_blocks <= metrics.kv_blocks
    assert 0 <= metrics.utilisation <= 1
    assert metrics.num_unfinished + metrics.num_rejected + int(run.evaluation.finished.sum()) == len(instance.requests)
    assert metrics.drained == (metrics.num_unfinished == 0)
    assert metrics.num_tokens == int(run.schedule.tokens.sum())
