"""Bounds under simulated fleets: no scheduler and router keeps a promise with fewer replicas than are proved."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_fleets import RULES

from slo_opt.analysis.fleet_bound import bound_unit, static_bound
from slo_opt.analysis.fleet_count import Crew, count_unit, keeps, run_fleet
from slo_opt.analysis.fleet_plan import bound_tasks, count_tasks, plan_document, run_plan
from slo_opt.analysis.fleet_promise import Promise, max_lost
from slo_opt.analysis.fleet_request import Offer, Pair, PlanRequest
from slo_opt.analysis.fleet_source import FleetSource
from slo_opt.analysis.fleet_stress import AS_IS, Stress, on_engine
from slo_opt.analysis.gap_source import TraceSource
from slo_opt.analysis.solve import UnsoundBoundError
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.solvers.fleet import least_fleet
from slo_opt.solvers.interface import SolverConfig
from slo_opt.traces.small import small_instance
from slo_opt.traces.write import write_trace

PAIRS = (("vllm-fcfs", "round-robin"), ("edf", "join-shortest-queue"), ("edf", "least-loaded"))


def overlaid(rng: random.Random, copies: int) -> Instance:
    """Several small instances of one kind at the same time: enough for a fleet; some request is under an SLO."""
    rule = rng.choice(RULES)
    while True:
        base = small_instance(rng, max_requests=12, score_rule=rule)
        if any(base.value_of(request) > 0 for request in base.requests):
            break
    requests: list[Request] = []
    for copy in range(copies):
        requests += [
            replace(r, id=f"{copy}-{r.id}", arrival_s=r.arrival_s + rng.uniform(0, 0.05)) for r in base.requests
        ]
    requests = [replace(r, id=f"q{k}") for k, r in enumerate(sorted(requests, key=lambda r: r.arrival_s))]
    return replace(base, requests=tuple(requests))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from(PAIRS))
@example(979391798, 0.5, PAIRS[0])  # best effort alone, at the first draw
def test_no_simulated_fleet_is_smaller_than_what_is_proved(seed: int, share: float, pair: tuple[str, str]):
    instance = overlaid(random.Random(seed), 4)
    targets = Promise(share).targets(instance)
    crew = Crew(*pair, {}, {}, "oracle")
    kept = [
        count
        for count in (1, 2, 3, 4, 8)
        if keeps(run_fleet(instance, instance.engine, count, crew, SimulationOptions()), targets)
    ]
    if kept:
        bound = least_fleet([instance], targets, [1.0], [64], SolverConfig(time_limit_s=2.0))
        assert bound.counts is not None
        assert bound.counts[0] <= min(kept)


def test_some_of_these_fleets_keep_their_promise():
    """Otherwise the test above would show nothing."""
    kept = 0
    for seed in range(12):
        instance = overlaid(random.Random(seed), 4)
        targets = Promise(0.5).targets(instance)
        crew = Crew("edf", "join-shortest-queue", {}, {}, "oracle")
        kept += keeps(run_fleet(instance, instance.engine, 8, crew, SimulationOptions()), targets)
    assert kept >= 4


def test_a_run_that_is_stopped_early_breaks_the_promise():
    instance = overlaid(random.Random(1), 6)
    targets = Promise(1.0).targets(instance)
    crew = Crew("vllm-fcfs", "round-robin", {}, {})
    whole = run_fleet(instance, instance.engine, 1, crew, SimulationOptions())
    cut = run_fleet(instance, instance.engine, 1, crew, SimulationOptions(max_lost=max_lost(instance, targets)))
    assert keeps(whole, targets) == keeps(cut, targets)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of conversation, and half of it again a minute later, as a file."""
    from slo_opt.traces.generate import generate

    trace = generate("chatbot", rate=6.0, duration_s=12.0, seed=5, engine="llama-3-8b-a100")
    later = tuple(replace(r, id=f"b{r.id}", arrival_s=r.arrival_s + 60.0) for r in trace.requests[::2])
    path = tmp_path_factory.mktemp("fleet") / "bursts.json"
    write_trace(replace(trace, requests=trace.requests + later, provenance={}), path)
    return path


def asked(path: Path, **more) -> PlanRequest:
    given = {"promise": Promise(0.9), "offers": (Offer(None),), "pairs": (Pair("edf", "join-shortest-queue"),), **more}
    return PlanRequest(FleetSource(TraceSource(path, unservable="lose")), time_limit_s=5.0, **given)


def planned(request: PlanRequest) -> dict:
    with ResultsFile(None) as results:
        instance = request.instance()
        run_plan(request, instance, results.results, lambda tasks: run_tasks(tasks, Pool(1), results))
        return plan_document(request, instance, results.results)


def test_a_plan(traffic: Path):
    document = planned(asked(traffic, stresses=(AS_IS, Stress("faster", rate=1.5))))
    assert document["complete"]
    for row in document["stresses"]:
        (policy,) = row["policies"]
        assert 1 <= row["bound"]["counts"][0] <= policy["count"]
        assert policy["attained"] >= row["bound"]["needed"]
        tried = dict(policy["probes"])
        assert tried[policy["count"]]
        assert policy["count"] == policy["at_least"] or not tried[policy["count"] - 1]
        assert policy["ratio"] == pytest.approx(policy["count"] / row["bound"]["counts"][0])
    slow, fast = (row["bound"]["counts"][0] for row in document["stresses"])
    assert slow <= fast


def test_periods_bound_the_fleet_that_never_changes(traffic: Path):
    request = asked(traffic, period_s=30.0)
    document = planned(request)
    over = document["over_time"]
    whole = planned(replace(request, period_s=None))
    assert [period["number"] for period in over["periods"]] == [0, 2]  # nothing arrives in between
    assert over["hours"] == pytest.approx(90 / 3600)
    counts = [period["counts"][0] for period in over["periods"]]
    assert over["gpu_hours"] == pytest.approx(sum(counts) * 30 / 3600)
    assert over["mean_price"] == pytest.approx(sum(counts) / 3)
    assert over["peak"]["counts"] == [max(counts)]
    assert sum(period["offered"] for period in over["periods"]) == document["stresses"][0]["bound"]["offered"]
    (policy,) = whole["stresses"][0]["policies"]
    assert 1 <= document["stresses"][0]["bound"]["counts"][0] <= policy["count"]
    assert over["static_gpu_hours"] == pytest.approx(document["stresses"][0]["bound"]["counts"][0] * 90 / 3600)


def test_a_period_alone_is_bounded_by_its_own_requests(traffic: Path):
    request = asked(traffic, period_s=30.0)
    instance = request.instance()
    for task in bound_tasks(request, instance):
        unit = bound_unit(task.inputs, **task.where)
        period = task.inputs["period"]
        kept = tuple(r for r in instance.requests if period["start_s"] <= r.arrival_s < period["end_s"])
        part = instance.with_requests(kept)
        crew = Crew("edf", "join-shortest-queue", {}, {})
        fewer = unit["counts"][0] - 1
        if fewer:
            assert not keeps(run_fleet(part, part.engine, fewer, crew, SimulationOptions()), Promise(0.9).targets(part))


def test_what_is_missing_is_left_out(traffic: Path):
    request = asked(traffic, period_s=30.0)
    instance = request.instance()
    document = plan_document(request, instance, {})
    assert not document["complete"]
    assert document["over_time"] is None
    tasks = bound_tasks(request, instance)
    results = {task.key: bound_unit(task.inputs, **task.where) for task in tasks}
    found, left = static_bound(request, AS_IS, request.periods(instance, AS_IS), results)
    assert found["counts"][0] >= 1
    assert all(task.key not in results for task in left)
    assert count_tasks(request, instance, results)


def test_a_bound_above_a_run_is_an_error(traffic: Path):
    """Told that more replicas are needed than are, the search finds out."""
    request = asked(traffic)
    (task,) = [request.count_task(AS_IS, request.pairs[0], 0, 40)]
    with pytest.raises(UnsoundBoundError, match="40 are proved"):
        count_unit(task.inputs, **task.where)


def test_the_best_setting_needs_no_more_than_the_default(traffic: Path):
    request = asked(traffic, pairs=(Pair("sarathi", "round-robin"),))
    default = request.count_task(AS_IS, request.pairs[0], 0, 1)
    best = replace(request, all_settings=True).count_task(AS_IS, request.pairs[0], 0, 1)
    assert default.key != best.key
    counts = [count_unit(task.inputs, **task.where)["count"] for task in (default, best)]
    assert counts[1] <= counts[0]


def test_two_engine_types(traffic: Path):
    offers = (Offer("llama-3-8b-a100", 1.8), Offer("llama-3-8b-h100", 4.5))
    request = asked(traffic, offers=offers, pairs=())
    (row,) = planned(request)["stresses"]
    bound = row["bound"]
    alone = [count * offer.price for count, offer in zip(bound["alone"], offers, strict=True)]
    assert bound["price"] <= min(alone) + 1e-9
    cheap = planned(replace(request, offers=(offers[0],)))["stresses"][0]["bound"]
    assert bound["alone"][0] <= cheap["counts"][0]
    with pytest.raises(InvalidInputError, match="given twice"):
        replace(request, offers=(offers[0], offers[0])).instance()


def test_a_slower_engine_keeps_the_promise_of_the_first(traffic: Path):
    """What the checker counts for replicas of another type are the limits of the instance."""
    instance = asked(traffic).instance()
    other = engine_named("llama-3-8b-h100")
    run = run_fleet(instance, other, 2, Crew("edf", "round-robin", {}, {}), SimulationOptions())
    assert run.evaluation.legal
    assert (run.evaluation.attained == run.on_time).all()
    assert on_engine(instance, other).engine == other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offers": ()}, "0 engine types"),
        ({"limit": 0}, "at most 0 replicas"),
        ({"period_s": 0.5}, "a period of 0.5 s"),
        ({"lengths": "oracel"}, "Did you mean 'oracle'"),
        ({"pairs": (Pair("edff", "round-robin"),)}, "Did you mean 'edf'"),
        ({"pairs": (Pair("edf", "round-robbin"),)}, "Did you mean 'round-robin'"),
        ({"period_s": 30.0, "promise": Promise(classes=(("code", 0.9),))}, "one share for all"),
    ],
)
def test_what_is_refused(traffic: Path, change: dict, words: str):
    with pytest.raises(InvalidInputError, match=words):
        asked(traffic, **change)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_shares(share: float):
    with pytest.raises(InvalidInputError, match=r"share in \(0, 1\]"):
        Promise(share)
    with pytest.raises(InvalidInputError, match="class 'a'"):
        Promise(classes=(("a", share),))


def test_promises_are_one_or_the_other():
    for wrong in ({}, {"overall": 0.9, "classes": (("a", 0.5),)}):
        with pytest.raises(InvalidInputError, match="give one of the two"):
            Promise(**wrong)
    with pytest.raises(InvalidInputError, match="twice"):
        Promise(classes=(("a", 0.5), ("a", 0.6)))
    promise = Promise(classes=(("a", 0.5), ("b", 1.0)))
    assert Promise.of(promise.inputs()) == promise


def test_unknown_classes_name_the_nearest(traffic: Path):
    instance = asked(traffic).instance()
    name = next(iter(instance.slo_classes))
    with pytest.raises(InvalidInputError, match="Did you mean"):
        Promise(classes=((name + "x", 0.5),)).targets(instance)


def test_tasks_depend_on_all_that_is_asked(traffic: Path):
    request = asked(traffic)
    keys = {
        changed.bound_task(AS_IS).key
        for changed in (
            request,
            replace(request, promise=Promise(0.95)),
            replace(request, limit=7),
            replace(request, time_limit_s=6.0),
            replace(request, source=replace(request.source, scale=2.0)),
            replace(request, offers=(Offer("llama-3-8b-h100"),)),
        )
    }
    assert len(keys) == 6
