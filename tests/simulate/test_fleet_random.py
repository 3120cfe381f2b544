"""Random fleets under random routers: no token, KV block or request is lost or doubled, and the checker accepts all."""

import math
from collections import Counter

import numpy as np
import pytest
from fleets import drawn_fleet
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.routing.interface import Role
from slo_opt.simulate.faults import FaultKind
from slo_opt.simulate.metrics import run_metrics

SEEDS = st.integers(0, 10**9)


@settings(max_examples=400, deadline=None)
@given(SEEDS)
def test_the_checker_agrees_with_every_fleet(seed):
    drawn = drawn_fleet(seed)
    run, outcome = drawn.run, drawn.run.evaluation
    assert outcome.violations == ()
    assert outcome.finished.tolist() == run.finished.tolist()
    assert outcome.attained.tolist() == run.on_time.tolist()
    lives = {id: job for watched in drawn.watched for id, job in watched.jobs.items()}
    for i, request in enumerate(drawn.instance.requests):
        job = lives.get(request.id)
        if job is not None:
            assert job.missed == any(stage.lateness_s > TIME_TOLERANCE_S for stage in outcome.stages[i])


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_every_request_is_over_once_or_still_there(seed):
    drawn = drawn_fleet(seed)
    run, count = drawn.run, len(drawn.instance.requests)
    over = Counter([*np.flatnonzero(run.finished).tolist(), *run.rejected, *run.failed])
    assert set(over.values()) <= {1}
    ends = Counter(end.id for end in drawn.router.ends)
    for i, request in enumerate(drawn.instance.requests):
        rounds = sum(stage.prompt_tokens > 0 for stage in request.stages)
        assert ends[request.id] <= rounds
        assert (ends[request.id] == rounds) == bool(run.finished[i])
        tokens = sum(end.output_tokens for end in drawn.router.ends if end.id == request.id)
        assert tokens == request.output_tokens or not run.finished[i]
    assert run_metrics(run).num_unfinished == count - run.finished.sum() - len(run.rejected)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from(["vllm-fcfs", "sarathi", "edf"]))
def test_a_policy_that_serves_all_leaves_nobody_behind(seed, policy):
    drawn = drawn_fleet(seed, policy=policy, faults=False)
    run = drawn.run
    over = {*np.flatnonzero(run.finished).tolist(), *run.rejected}
    assert over == set(range(len(drawn.instance.requests)))
    assert not run.failed


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_prefill_replicas_stop_at_the_first_token(seed):
    drawn = drawn_fleet(seed, roles=[Role.PREFILL, Role.PREFILL, Role.DECODE], scale=False)
    known: dict[int, int] = {}
    for batch in drawn.run.schedule:
        for index in batch.requests:
            known[index] = batch.replica
    transfer = drawn.options.transfer
    moved = [move for move in drawn.run.schedule.moves if move.target is not None]
    assert len(moved) == drawn.run.num_transfers
    for move in moved:
        assert move.source in (0, 1)
        assert move.target == 2
        assert move.end_s - move.start_s >= transfer.latency_s - 1e-9
    assert drawn.run.evaluation.legal
    lone = [request.output_tokens == 1 for request in drawn.instance.requests]
    single = [i for i, request in enumerate(drawn.instance.requests) if len(request.stages) == 1 and lone[i]]
    for i in single:
        if drawn.run.finished[i]:
            assert known[i] in (0, 1)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_the_same_seed_gives_the_same_fleet_run(seed):
    first, again = drawn_fleet(seed), drawn_fleet(seed)
    assert first.run.schedule.to_dict() == again.run.schedule.to_dict()
    assert first.router.routed == again.router.routed
    assert first.run.replica_s == again.run.replica_s
    assert (first.run.rejected, first.run.failed) == (again.run.rejected, again.run.failed)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_requests_run_only_where_and_when_a_replica_serves(seed):
    drawn = drawn_fleet(seed, faults=True)
    run = drawn.run
    for batch in run.schedule:
        spans = run.fleet.replicas[batch.replica].up_s
        assert any(from_s <= batch.start_s <= until_s for from_s, until_s in spans)
    for fault in drawn.options.faults:
        if fault.kind is FaultKind.CUT_OFF:
            offered = [ids for now_s, _, ids, _ in drawn.router.routed if fault.at_s < now_s < fault.until_s]
            assert not any(f"r{fault.replica}" in ids for ids in offered)
    starts = {replica.id: replica.up_s[0][0] if replica.up_s else math.inf for replica in run.fleet.replicas}
    for now_s, _, ids, _ in drawn.router.routed:
        assert all(starts[id] <= now_s for id in ids)
    for stay, replica in zip(run.stays, run.fleet.replicas, strict=True):
        assert not replica.up_s or stay.since_s <= replica.up_s[0][0]


def test_the_random_fleets_reach_every_corner():
    """Guard against properties that hold because nothing ever happens."""
    seen = Counter()
    for seed in range(300):
        drawn = drawn_fleet(seed)
        run = drawn.run
        seen["attained"] += int(run.on_time.sum())
        seen["late"] += int((run.finished & ~run.on_time).sum())
        seen["rejected"] += len(run.rejected)
        seen["failed"] += len(run.failed)
        seen["hops"] += run.num_hops
        seen["transfers"] += run.num_transfers
        seen["routed while decoding"] += drawn.router.decoding
        seen["held back"] += sum(chosen is None for *_, chosen in drawn.router.routed)
        seen["preempted"] += run.num_preemptions
        seen["demoted"] += run.num_demotions
        seen["kv lost"] += sum(move.target is None for move in run.schedule.moves)
        seen["delivered late"] += len(run.schedule.delivered_s)
        seen["joined"] += len(run.stays) - len(drawn.specs)
        seen["left"] += sum(stay.until_s < math.inf for stay in run.stays)
        seen["later rounds"] += sum(job.round > 0 for watched in drawn.watched for job in watched.jobs.values())
        seen["stale"] += drawn.options.report_every_s > 0
    assert len(seen) == 16
    assert min(seen.values()) >= 10, seen


@pytest.mark.parametrize("kind", list(FaultKind))
def test_each_kind_of_fault_is_met_under_load(kind):
    met = 0
    for seed in range(60):
        drawn = drawn_fleet(seed, faults=True)
        met += any(fault.kind is kind and fault.at_s < drawn.run.end_s for fault in drawn.options.faults)
    assert met >= 10
