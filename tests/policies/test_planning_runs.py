"""slo-opt and SLOs-Serve over whole runs: who is made late, how long batches last, what drafts and margins pay."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import Case, random_case

from slo_opt.domain.engine import prefill_pairs
from slo_opt.policies.budget import tightest_tpot_s
from slo_opt.policies.interface import Allocation, AllocationPolicy, EngineSnapshot, Job, Standing
from slo_opt.policies.margin import Margin
from slo_opt.policies.registry import PolicyContext, make_policy
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions, simulate
from slo_opt.traces.generate import generate

SEEDS = st.integers(0, 10**9)
EXACT = SimulationOptions()


def batch_s(snapshot: EngineSnapshot, entries: list[tuple[Job, int]]) -> float:
    """How long a batch takes, counted from its entries."""
    return snapshot.engine.batch_time_s(
        sum(count for _, count in entries),
        decode_context_tokens=sum(job.computed_tokens for job, _ in entries if job.decoding),
        prefill_pairs=sum(prefill_pairs(count, job.computed_tokens) for job, count in entries if not job.decoding),
        num_requests=len(entries),
    )


class Watched:
    """Lets a policy decide and shows each decision to a check."""

    def __init__(self, policy: AllocationPolicy, check: Callable[[EngineSnapshot, Allocation], None]) -> None:
        self.name = policy.name
        self._policy = policy
        self._check = check

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        allocation = self._policy.decide(snapshot)
        self._check(snapshot, allocation)
        return allocation


def watch(case: Case, name: str, check: Callable[[EngineSnapshot, PolicyContext, Allocation], None]) -> Run:
    context = PolicyContext(case.instance.engine, case.instance.slo_classes, case.predictor())
    policy = Watched(make_policy(name, context), lambda snapshot, allocation: check(snapshot, context, allocation))
    return simulate(case.instance, policy, case.options)


def under_slo(job: Job, allocation: Allocation) -> bool:
    return job.standing is not Standing.BEST_EFFORT and not any(job is other for other in allocation.demoted)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_slo_opt_makes_no_decode_late_that_decodes_alone_would_not(seed):
    case = replace(random_case(random.Random(seed)), options=EXACT)

    def check(snapshot: EngineSnapshot, _: PolicyContext, allocation: Allocation) -> None:
        decodes = [job for job in snapshot.running if job.decoding and under_slo(job, allocation)]
        engine, in_batch = snapshot.engine, {job.id for job, _ in allocation.tokens}
        seats = min(engine.max_num_seqs, engine.max_num_batched_tokens)
        growing = [job for job in decodes if job.computed_tokens == job.kv_blocks * engine.block_size_tokens]
        if len(growing) > snapshot.free_kv_blocks or not allocation.tokens or not 1 <= len(decodes) <= seats:
            return
        now_s, end_s = snapshot.now_s, snapshot.now_s + batch_s(snapshot, allocation.tokens)
        alone_s = batch_s(snapshot, [(job, 1) for job in decodes])
        if now_s + alone_s > min(job.due_s for job in decodes):
            return
        for job in decodes:
            assert job.due_s >= end_s + (0 if job.id in in_batch else alone_s) - 1e-9

    watch(case, "slo-opt", check)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_batches_of_slos_serve_last_one_period(seed):
    case = replace(random_case(random.Random(seed)), options=EXACT)

    def check(snapshot: EngineSnapshot, context: PolicyContext, allocation: Allocation) -> None:
        others = [job for job, _ in allocation.tokens if under_slo(job, allocation)]
        if all(job.decoding for job, _ in allocation.tokens) or not others:
            return  # as long as the decodes take, or best effort alone
        tiers = [job.tpot_s for job in snapshot.running if job.decoding and under_slo(job, allocation)]
        shortest_s = 1.2 * snapshot.engine.zero_load_ttft_s(1)
        period_s = max(min(tiers, default=tightest_tpot_s(context)), shortest_s)
        assert batch_s(snapshot, allocation.tokens) <= period_s + 1e-9

    watch(case, "slos-serve", check)


@pytest.mark.parametrize("name", ["slo-opt", "slos-serve"])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_best_effort_never_becomes_more(name: str, seed: int):
    relegated: set[str] = set()

    def check(snapshot: EngineSnapshot, _: PolicyContext, allocation: Allocation) -> None:
        for job in (*snapshot.running, *snapshot.waiting):
            assert (job.standing is Standing.BEST_EFFORT) or job.id not in relegated
        relegated.update(job.id for job in allocation.demoted)
        assert not any(job.id in relegated for job in allocation.admitted)

    watch(random_case(random.Random(seed)), name, check)


def generated(scenario: str, engine: str, rate: float, seed: int, options: SimulationOptions) -> Case:
    instance = generate(scenario, rate=rate, duration_s=15.0, seed=seed, engine=engine).to_instance()
    return Case(instance, options, "quantile")


def attained(cases: list[Case], name: str, **setting: object) -> int:
    return sum(case.run(name, setting).evaluation.num_attained for case in cases)


@pytest.mark.parametrize("name", ["slo-opt", "slos-serve"])
def test_drafts_serve_tiers_that_no_plain_step_keeps(name: str):
    # A step takes 25 ms; three in ten requests are promised a token every 20 or 30.
    options = SimulationOptions(1, acceptance=0.7)
    cases = [generated("polyserve", "opt-6.7b-a100-draft", 5.0, seed, options) for seed in (6, 7)]
    assert attained(cases, name) > 1.2 * attained(cases, name, speculate=False)


@pytest.mark.parametrize(("noise", "slowdown"), [(0.2, 1.0), (0.0, 1.2)])
def test_the_margin_pays_where_batches_outlast_the_model(
    monkeypatch: pytest.MonkeyPatch, noise: float, slowdown: float
):
    cases = [generated("mixed", "opt-6.7b-a100", 4.0, seed, SimulationOptions(2, noise, slowdown)) for seed in (5, 6)]
    with_margin = attained(cases, "slo-opt")
    monkeypatch.setattr(Margin, "beyond", lambda *_: 1.0)
    assert with_margin > 1.02 * attained(cases, "slo-opt")
