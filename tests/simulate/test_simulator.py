"""Runs of the simulator against the engine model, against conservation laws, and against the independent checker."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import RandomPolicy, WatchedPolicy, drawn_instance, named

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.domain.speculation import tokens_per_step
from slo_opt.policies.interface import Allocation, Standing
from slo_opt.simulate.simulator import SimulationOptions, simulate

SEEDS = st.integers(0, 10**9)
POLICIES = ("random", "random", "random with rejections", "vllm-fcfs", "vllm-priority")


def drawn_run(seed, policy=None, **fixed):
    """An instance, a watched policy and the run; the options too are drawn, except those given."""
    rng = random.Random(seed)
    instance = drawn_instance(rng)
    policy = policy or rng.choice(POLICIES)
    options = SimulationOptions(
        seed=seed,
        noise=fixed.get("noise", rng.choice([0.0, 0.0, 0.2])),
        slowdown=fixed.get("slowdown", rng.choice([1.0, 1.0, 1.3])),
        acceptance=fixed.get("acceptance", rng.choice([0.0, 0.0, 0.7])),
    )
    if policy.startswith("random"):
        inner = RandomPolicy(rng, reject=policy != "random")
    else:
        inner = named(policy, instance, budget_tokens=rng.choice([32, 256, 2048]))
    watched = WatchedPolicy(inner, math.nan if options.noise else options.slowdown)
    return instance, watched, simulate(instance, watched, options)


@settings(max_examples=400, deadline=None)
@given(SEEDS)
def test_the_checker_agrees_with_every_run(seed):
    instance, watched, run = drawn_run(seed)
    outcome = run.evaluation
    assert outcome.violations == ()
    for i, request in enumerate(instance.requests):
        job, stages = watched.jobs.get(request.id), outcome.stages[i]
        if job is None:
            assert stages == ()
            continue
        late = any(stage.lateness_s > TIME_TOLERANCE_S for stage in stages)
        assert job.missed == late
        assert job.done == outcome.finished[i]
        assert outcome.attained[i] == (job.done and not job.missed and bool(outcome.counted[i]))
        if job.done:
            assert job.last_token_s == stages[-1].last_token_s
        assert job.standing is not Standing.UNDECIDED or not stages
        assert (i in run.schedule.admitted) == (job.standing is Standing.ADMITTED)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_batches_start_and_last_as_the_engine_model_says(seed):
    _, watched, run = drawn_run(seed)
    assert run.schedule.start_s.tolist() == watched.starts_s
    if run.schedule.duration_s is None:
        durations_s = watched.batches_s
    else:
        durations_s = run.schedule.duration_s.tolist()
        assert durations_s[:-1] == watched.batches_s[:-1]
    if durations_s:
        assert run.end_s >= watched.starts_s[-1] + durations_s[-1]
        assert run.evaluation.busy_s == pytest.approx(math.fsum(durations_s))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(["vllm-fcfs", "vllm-priority"]))
def test_vllm_finishes_all_that_fits_and_never_idles(seed, name):
    instance, watched, run = drawn_run(seed, name, noise=0.0, slowdown=1.0)
    assert run.evaluation.finished.tolist() == [i not in run.rejected for i in range(len(instance.requests))]
    ends_s = [start_s + batch_s for start_s, batch_s in zip(watched.starts_s, watched.batches_s, strict=True)]
    releases_s = {stage.release_s for stages in run.evaluation.stages for stage in stages}
    for end_s, start_s in zip([0.0, *ends_s], watched.starts_s, strict=False):
        assert start_s == end_s or start_s in releases_s


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_times_between_tokens_are_those_of_the_schedule(seed):
    instance, _, run = drawn_run(seed, noise=0.0, slowdown=1.0)
    gaps = sum(len(gaps_s) for gaps_s in run.gaps_s.values())
    decodes = 0
    for request, stages in zip(instance.requests, run.evaluation.stages, strict=True):
        name, spans_s = instance.slo_of(request).name, 0.0
        rounds = [k for k, stage in enumerate(request.stages) if stage.prompt_tokens]
        for first, after in zip(rounds, [*rounds[1:], len(request.stages)], strict=True):
            phases = stages[first:after]
            if phases and not math.isnan(phases[0].first_token_s):
                last_s = [p.last_token_s for p in phases if not math.isnan(p.last_token_s)][-1]
                spans_s += last_s - phases[0].first_token_s
        decodes += spans_s
        assert name in run.gaps_s
    assert sum(gaps_s.sum() for gaps_s in run.gaps_s.values()) == pytest.approx(decodes)
    assert all((gaps_s >= 0).all() for gaps_s in run.gaps_s.values())
    if run.evaluation.finished.all():
        rounds = Counter(r.id for r in instance.requests for stage in r.stages if stage.prompt_tokens)
        assert gaps == sum(r.output_tokens for r in instance.requests) - rounds.total()


def test_the_random_runs_reach_every_corner():
    """Guard against properties that hold because nothing ever happens."""
    seen = Counter()
    for seed in range(150):
        instance, watched, run = drawn_run(seed)
        outcome = run.evaluation
        seen["attained"] += int(outcome.attained.sum())
        seen["late"] += sum(job.missed for job in watched.jobs.values())
        seen["unfinished"] += int((~outcome.finished).sum())
        seen["preempted"] += run.num_preemptions
        seen["rejected"] += len(run.rejected)
        seen["demoted"] += run.num_demotions
        seen["speculated"] += 0 if run.schedule.emitted is None else int((run.schedule.emitted > 1).sum())
        seen["later rounds"] += sum(job.round > 0 for job in watched.jobs.values())
        seen["two phases"] += sum(any(not s.prompt_tokens for s in r.stages) for r in instance.requests)
        seen["kv full"] += outcome.peak_kv_blocks > 0.9 * instance.engine.kv_blocks
    corners = {"attained", "late", "unfinished", "preempted", "rejected", "demoted", "speculated", "later rounds"}
    assert set(seen) == corners | {"two phases", "kv full"}
    assert min(seen.values()) >= 10, seen


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_same_seed_gives_the_same_run(seed):
    _, _, first = drawn_run(seed, "random", noise=0.3, acceptance=0.6)
    _, _, again = drawn_run(seed, "random", noise=0.3, acceptance=0.6)
    assert first.schedule.to_dict() == again.schedule.to_dict()
    assert first.end_s == again.end_s
    assert {name: gaps_s.tolist() for name, gaps_s in first.gaps_s.items()} == {
        name: gaps_s.tolist() for name, gaps_s in again.gaps_s.items()
    }


def lone(outputs: int, **engine_fields) -> Instance:
    """One request of a hundred prompt tokens."""
    engine = replace(engine_named("llama-3-8b-a100"), **engine_fields)
    request = Request("only", 0.25, (Stage(100, outputs, "chat"),))
    return Instance("lone", (request,), {"chat": SloClass("chat", 100.0, ttft_ms=1000.0)}, engine)


def test_noise_has_mean_one_and_the_spread_asked_for():
    instance = lone(4000, max_model_len=5000)
    plain_s = simulate(instance, (watched := WatchedPolicy(named("vllm-fcfs", instance)))).schedule
    assert plain_s.duration_s is None
    noisy = simulate(instance, named("vllm-fcfs", instance), SimulationOptions(seed=3, noise=0.2))
    factors = noisy.schedule.duration_s / np.array(watched.batches_s)
    assert factors.mean() == pytest.approx(1.0, abs=5 * 0.2 / math.sqrt(4000))
    assert np.log(factors).std() == pytest.approx(0.2, rel=0.06)


class Drafting:
    """Decodes with a fixed number of drafted tokens."""

    name = "drafting"

    def __init__(self, drafts):
        self.drafts = drafts

    def decide(self, snapshot):
        jobs = [*snapshot.running, *snapshot.waiting]
        return Allocation([(job, 1 + self.drafts if job.decoding else job.left_tokens) for job in jobs])


@pytest.mark.parametrize(("drafts", "acceptance"), [(1, 0.3), (3, 0.7), (6, 0.9)])
def test_drafts_are_accepted_as_often_as_the_model_says(drafts, acceptance):
    instance = lone(6000, max_model_len=7000)
    run = simulate(instance, Drafting(drafts), SimulationOptions(seed=1, acceptance=acceptance))
    assert run.evaluation.legal
    assert run.evaluation.finished.all()
    decodes = run.schedule.emitted[1:-1]  # without the prefill, and the last, which the end may cut short
    assert decodes.max() == 1 + drafts
    assert decodes.mean() == pytest.approx(tokens_per_step(1 + drafts, acceptance), rel=0.05)


def burst(count: int = 40) -> Instance:
    """More requests at once than can be on time."""
    engine = engine_named("llama-3-8b-a100")
    requests = tuple(Request(f"r{i:02}", 0.01 * i, (Stage(800, 40, "chat"),)) for i in range(count))
    return Instance("burst", requests, {"chat": SloClass("chat", 200.0, ttft_ms=1500.0)}, engine)


class RejectingAll:
    """Sends everybody away."""

    name = "rejecting"

    def decide(self, snapshot):
        return Allocation(rejected=[*snapshot.running, *snapshot.waiting])


def test_a_run_is_cut_once_more_are_lost_than_allowed():
    instance = burst()
    whole = simulate(instance, named("vllm-fcfs", instance))
    lost = len(instance.requests) - whole.evaluation.num_attained
    assert 10 < lost < len(instance.requests)
    assert not whole.cut
    for allowed in (0, 3, lost - 1, lost, lost + 1):
        run = simulate(instance, named("vllm-fcfs", instance), SimulationOptions(max_lost=allowed))
        assert run.cut == (allowed < lost)
        # Those that end late, and those whose first token is overdue.
        due_s = [r.arrival_s + instance.ttft_limit_s(r.stages[0]) for r in instance.requests]
        overdue = ~run.finished & (np.array(due_s) < run.end_s)
        late = run.finished & ~run.evaluation.attained
        assert (late | overdue).sum() > allowed or not run.cut
        batches = len(run.schedule)
        assert batches == len(whole.schedule) or run.cut
        assert run.schedule.start_s.tolist() == whole.schedule.start_s[:batches].tolist()
    first = simulate(instance, named("vllm-fcfs", instance), SimulationOptions(max_lost=0))
    assert len(first.schedule) < len(whole.schedule)


def test_rejections_count_as_lost():
    run = simulate(burst(), RejectingAll(), SimulationOptions(max_lost=5))
    assert run.cut
    assert len(run.rejected) == 6


def test_requests_that_cannot_fit_are_turned_away_and_the_rest_is_served():
    fits, long, wide = (
        Request(name, 0.0, (Stage(prompt, 10, "chat"),)) for name, prompt in (("a", 50), ("b", 900), ("c", 400))
    )
    engine = replace(engine_named("llama-3-8b-a100"), max_model_len=600, kv_blocks=20, block_size_tokens=16)
    instance = Instance("mixed", (long, wide, fits), {"chat": SloClass("chat", 100.0, ttft_ms=900.0)}, engine)
    run = simulate(instance, named("vllm-fcfs", instance))
    assert run.rejected == (0, 1)
    assert run.evaluation.attained.tolist() == [False, False, True]


def test_a_policy_that_serves_nobody_ends_the_run():
    class Idle:
        name = "idle"

        def decide(self, snapshot):
            return Allocation()

    run = simulate(burst(), Idle())
    assert len(run.schedule) == 0
    assert not run.evaluation.finished.any()
    assert run.evaluation.legal


@pytest.mark.parametrize(
    ("field", "value"),
    [("noise", -0.1), ("noise", math.nan), ("slowdown", 0.0), ("acceptance", 1.0), ("seed", -1), ("max_lost", -1)],
)
def test_senseless_options_are_refused(field, value):
    with pytest.raises(InvalidInputError, match=field):
        SimulationOptions(**{field: value})


def test_several_replicas_are_refused():
    with pytest.raises(InvalidInputError, match="2 replicas"):
        simulate(replace(burst(), num_replicas=2), RejectingAll())
