"""Random schedules: legal ones pass and score as a second reading of the rules says; spoiled ones are caught."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_schedules import RandomScheduler, attained

from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.domain.slo import ScoreRule
from slo_opt.traces.small import small_instance

SEEDS = st.integers(0, 10**9)


def drawn(seed: int, *, speculate: bool | None = None, preempt: bool = True):
    """An instance with slack limits now and then, and a random scheduler that has run on it."""
    rng = random.Random(seed)
    instance = small_instance(rng, score_rule=rng.choice(list(ScoreRule)))
    classes = {
        name: replace(slo, tpot_ms=slo.tpot_ms * factor, ttft_ms=400.0 * factor, ttft_slowdown=None)
        for name, slo in instance.slo_classes.items()
        for factor in [rng.choice([0.7, 1.5, 5.0])]
    }
    instance = replace(instance, slo_classes=classes, num_replicas=rng.choice([1, 1, 2]))
    speculate = rng.random() < 0.3 if speculate is None else speculate
    scheduler = RandomScheduler(instance, rng, speculate=speculate, preempt=preempt)
    scheduler.run()
    return instance, scheduler, rng


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_legal_schedules_pass_and_score_as_the_second_reading_says(seed):
    instance, scheduler, _ = drawn(seed)
    outcome = evaluate(instance, Schedule.from_batches(scheduler.batches))
    assert outcome.violations == ()
    assert outcome.finished.tolist() == [job.done for job in scheduler.jobs]
    assert outcome.attained.tolist() == [attained(instance, job) for job in scheduler.jobs]
    for job, stages in zip(scheduler.jobs, outcome.stages, strict=True):
        for times, release_s, stage in zip(job.tokens_s, job.released_s, stages, strict=False):
            assert stage.release_s == pytest.approx(release_s)
            if times:
                assert stage.first_token_s == pytest.approx(times[0])
            if len(times) > 1:
                assert stage.last_token_s == pytest.approx(times[-1])
    assert outcome.value == sum(instance.value_of(job.request) for job in scheduler.jobs if attained(instance, job))


def test_the_random_schedules_reach_both_outcomes():
    """Guard against a property that holds because nothing is ever attained, preempted or speculated."""
    seen = {True: 0, False: 0}
    preempted = speculated = 0
    for seed in range(100):
        instance, scheduler, _ = drawn(seed)
        for job in scheduler.jobs:
            seen[attained(instance, job)] += 1
        preempted += sum(len(batch.preempted) for batch in scheduler.batches)
        speculated += sum(sum(batch.emitted or ()) > len(batch.requests) for batch in scheduler.batches)
    assert min(seen.values()) > 50
    assert preempted > 20
    assert speculated > 10


def spoil(batches: list[Batch], rng: random.Random, how: str) -> list[Batch] | None:
    """One batch changed so that the schedule cannot be legal; None where it does not apply."""
    b = rng.randrange(len(batches))
    batch = batches[b]
    position = rng.randrange(len(batch.requests))
    tokens = list(batch.tokens)
    if how == "more tokens than known":
        tokens[position] += 10_000
        changed = replace(batch, tokens=tokens)
    elif how == "no tokens":
        tokens[position] = 0
        changed = replace(batch, tokens=tokens)
    elif how == "twice in one batch":
        emitted = None if batch.emitted is None else [*batch.emitted, 1]
        requests = [*batch.requests, batch.requests[position]]
        changed = replace(batch, requests=requests, tokens=[*tokens, 1], emitted=emitted)
    elif how == "starts in the batch before":
        if b == 0 or batches[b - 1].replica != batch.replica:
            return None
        changed = replace(batch, start_s=batches[b - 1].start_s + 1e-4)
    elif how == "foreign request":
        requests = list(batch.requests)
        requests[position] = 99
        changed = replace(batch, requests=requests)
    elif how == "foreign replica":
        changed = replace(batch, replica=7)
    else:
        assert how == "preempted before it runs"
        if b != 0:
            return None
        changed = replace(batch, preempted=[batch.requests[position]])
    return [*batches[:b], changed, *batches[b + 1 :]]


@pytest.mark.parametrize(
    "how",
    [
        "more tokens than known",
        "no tokens",
        "twice in one batch",
        "starts in the batch before",
        "foreign request",
        "foreign replica",
        "preempted before it runs",
    ],
)
def test_spoiled_schedules_are_caught(how):
    caught = 0
    for seed in range(40):
        instance, scheduler, rng = drawn(seed)
        if not scheduler.batches or (spoiled := spoil(scheduler.batches, rng, how)) is None:
            continue
        assert not evaluate(instance, Schedule.from_batches(spoiled)).legal
        caught += 1
    assert caught >= 5


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["kv_blocks", "max_num_batched_tokens", "max_num_seqs"]))
def test_a_smaller_engine_refuses_what_needs_the_larger_one(seed, limit):
    instance, scheduler, _ = drawn(seed, preempt=False)
    if not scheduler.batches:
        return
    schedule = Schedule.from_batches(scheduler.batches)
    peak = {
        "kv_blocks": evaluate(instance, schedule).peak_kv_blocks,
        "max_num_batched_tokens": max(sum(batch.tokens) for batch in schedule),
        "max_num_seqs": max(len(batch.requests) for batch in schedule),
    }[limit]
    rule = {
        "kv_blocks": "kv-capacity",
        "max_num_batched_tokens": "token-budget",
        "max_num_seqs": "sequence-limit",
    }[limit]
    for size in (peak, peak - 1):
        if size:
            fitted = replace(instance, engine=replace(instance.engine, **{limit: size}))
            found = {violation.rule for violation in evaluate(fitted, schedule).violations}
            assert found == (set() if size == peak else {rule})
