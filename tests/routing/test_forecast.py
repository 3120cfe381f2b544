"""What is predicted of a replica, against batches played one by one and against hand-worked cases."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_views import ENGINE, arriving, best_effort, decode, decodes, prompt, view

from slo_opt.domain.engine import EngineModel, RooflinePiece, prefill_pairs
from slo_opt.policies.interface import Job
from slo_opt.policies.lengths import NoLengths, OracleLengths
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import Role


def forecast(**lengths: int) -> Forecast:
    return Forecast(OracleLengths({id: [length] for id, length in lengths.items()}) if lengths else NoLengths())


def played_s(engine: EngineModel, running: list[Job], queue: list[Job]) -> float:
    """When the last prompt of a queue is done, batch by batch; the prefilled decode from the next batch on."""
    contexts = [job.computed_tokens for job in running]
    tightest_s = min(job.tpot_s for job in (*running, *queue))
    left = [[job.left_tokens, job.computed_tokens] for job in queue]
    elapsed_s = 0.0
    while left:
        period_s = tightest_s if contexts else math.inf
        tokens, pairs, held = len(contexts), 0.0, sum(contexts)
        batch_s = engine.batch_time_s(tokens, decode_context_tokens=held, num_requests=tokens)
        fresh = []
        for begun, prompt_left in enumerate(left, start=1):
            taken = 0
            while taken < prompt_left[0] and tokens < engine.max_num_batched_tokens:
                longer_s = engine.batch_time_s(
                    tokens + 1,
                    decode_context_tokens=held,
                    prefill_pairs=pairs + prefill_pairs(taken + 1, prompt_left[1]),
                    num_requests=len(contexts) + begun,
                )
                if longer_s > period_s:
                    break
                batch_s, taken, tokens = longer_s, taken + 1, tokens + 1
            pairs += prefill_pairs(taken, prompt_left[1])
            prompt_left[0] -= taken
            prompt_left[1] += taken
            if prompt_left[0]:
                break
            fresh.append(prompt_left[1])
        left = [prompt_left for prompt_left in left if prompt_left[0]]
        contexts = [held_tokens + 1 for held_tokens in contexts] + fresh
        elapsed_s += batch_s
    return elapsed_s


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_prefill_is_predicted_within_a_few_batches_of_what_is_played(seed):
    rng = random.Random(seed)
    engine = EngineModel(
        "drawn",
        "drawn",
        (RooflinePiece(1e-5, 8e-3), RooflinePiece(6e-5, 2e-3)),
        decode_context_s=rng.choice([0.0, 1e-7]),
        prefill_pair_s=rng.choice([0.0, 1e-8]),
        request_s=rng.choice([0.0, 1e-5]),
        max_num_batched_tokens=2048,
    )
    tpot_s = rng.choice([0.03, 0.05, 0.1])
    running = [decode(f"d{k}", tpot_s=tpot_s, tokens=rng.randint(1, 500)) for k in range(rng.randint(0, 60))]
    queue = [prompt(f"p{k}", rng.randint(1, 900), tpot_s=tpot_s) for k in range(rng.randint(0, 8))]
    job = prompt("j", rng.randint(1, 900), tpot_s=tpot_s)
    predicted_s = forecast().outlook(view("a", [*running, *queue], engine=engine)).prefilled_s(job)
    actual_s = played_s(engine, running, [*queue, job])
    longest_s = tpot_s if running else engine.batch_time_s(2048)
    assert abs(predicted_s - actual_s) <= 2 * longest_s + 0.1 * actual_s


def test_the_queue_ahead_and_the_batch_under_way_are_waited_for():
    # 20 decodes of 50 ms leave 20 tokens a batch; 40 queued take two batches, 10 of one's own half a third.
    jobs = [*decodes(20), prompt("p", 40)]
    busy = view("a", jobs, batch_ends_s=7.03)
    job = prompt("j", 10, due_s=9.0)
    ahead_s = forecast().next_token_s(job, busy, 7.0, wait_aware=False, continuous=False)
    assert ahead_s == pytest.approx(0.1 + 0.03 + 0.01)
    assert forecast().next_token_s(job, busy, 7.0, continuous=False) == pytest.approx(0.03 + ahead_s)
    assert forecast().next_token_s(job, view("b", batch_ends_s=7.03), 7.0) == pytest.approx(0.02)


def test_prompts_ahead_become_decodes():
    # Chunks of 20, 19, ... tokens instead of 20 each.
    jobs = [*decodes(20), *(prompt(f"p{k}", 20) for k in range(15))]
    job = prompt("j", 20)
    assert forecast().next_token_s(job, view("a", jobs), 0.0, continuous=False) == pytest.approx(0.8)
    slower_s = 0.05 * sum(20 / room for room in range(5, 21))
    assert forecast().next_token_s(job, view("a", jobs), 0.0) == pytest.approx(slower_s, abs=0.05)


def test_where_only_prompts_are_prefilled_nobody_decodes():
    jobs = [prompt(f"p{k}", 1000) for k in range(4)]
    only = view("a", jobs, role=Role.PREFILL)
    assert forecast().next_token_s(prompt("j", 96), only, 0.0) == pytest.approx(ENGINE.batch_time_s(4096))
    assert forecast().tightest_s(prompt("j", 96, tpot_s=0.1), only) == 0.1
    # A batch of 4,096 tokens takes 4.1 s.
    assert forecast().attainable(prompt("j", 96, due_s=4.2), only, 0.0)
    assert not forecast().attainable(prompt("j", 96, due_s=4.0), only, 0.0)


def test_decodes_that_leave_prompts_no_time_never_let_them_finish():
    assert forecast().next_token_s(prompt("j"), view("a", decodes(40)), 0.0) == math.inf


def test_best_effort_gives_way():
    crowd = view("a", [best_effort(job) for job in decodes(200)])
    assert forecast().attainable(prompt("j"), crowd, 0.0)
    assert forecast().outlook(crowd).members == []


def test_a_tier_is_full_when_an_iteration_lasts_its_tpot():
    assert forecast().attainable(prompt("j", 5), view("a", decodes(38)), 0.0)
    assert forecast().attainable(arriving(decode("j")), view("a", decodes(39), role=Role.DECODE), 0.0)
    assert not forecast().attainable(arriving(decode("j")), view("a", decodes(40), role=Role.DECODE), 0.0)
    # The host's TPOT holds for a looser request, and the request's own among looser ones.
    assert not forecast().attainable(arriving(decode("j", tpot_s=0.1)), view("a", decodes(40)), 0.0)
    assert not forecast().attainable(arriving(decode("j")), view("a", decodes(40, 0.1)), 0.0)
    assert forecast().attainable(arriving(decode("j", tpot_s=0.1)), view("a", decodes(40, 0.1)), 0.0)


def test_contexts_that_grow_slow_the_iterations_to_come():
    # 20 decodes with 17 tokens each: 30 ms now; each token of context takes 5 us.
    engine = replace(ENGINE, decode_context_s=5e-6)
    job = arriving(decode("j"))
    short = {f"d0.05-{k}": 10 for k in range(19)} | {"j": 10}
    long = dict.fromkeys(short, 300)
    crowd = view("a", decodes(19), engine=engine)
    assert forecast(**short).attainable(job, crowd, 0.0)
    assert forecast(**long).near_step_s(job, crowd) == forecast(**short).near_step_s(job, crowd) < 0.05
    assert not forecast(**long).attainable(job, crowd, 0.0)


def test_kv_and_sequences_must_suffice():
    small = replace(ENGINE, kv_blocks=40)
    few = replace(ENGINE, max_num_seqs=2)
    lengths = {"j": 100, "d0.05-0": 100, "d0.05-1": 100}
    assert forecast(**lengths).attainable(prompt("j", 100), view("a", decodes(1), engine=small), 0.0)
    assert not forecast(**lengths).attainable(prompt("j", 500), view("a", decodes(1), engine=small), 0.0)
    assert forecast().attainable(prompt("j"), view("a", decodes(1), engine=few), 0.0)
    assert not forecast().attainable(prompt("j"), view("a", decodes(2), engine=few), 0.0)


def test_a_decode_that_arrives_waits_for_the_batch_under_way():
    busy = view("a", decodes(10), role=Role.DECODE, batch_ends_s=0.04)
    assert forecast().attainable(arriving(decode("j", due_s=0.062)), busy, 0.0)
    assert not forecast().attainable(arriving(decode("j", due_s=0.060)), busy, 0.0)
    assert forecast().attainable(arriving(decode("j", due_s=0.060)), busy, 0.0, wait_aware=False)
