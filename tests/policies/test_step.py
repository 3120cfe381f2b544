"""What all baselines share: who gives way for memory and sequences, best effort, the waiting queue, the batch."""

import random
from dataclasses import replace

import pytest
from hand_made import ENGINE, answer, best_effort, context, decode, ids, prompt, snapshot, tokens
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.edf import EdfPolicy
from slo_opt.policies.interface import Job
from slo_opt.policies.qoserve import QoServePolicy
from slo_opt.policies.sarathi import SarathiPolicy
from slo_opt.policies.scorpio import ScorpioPolicy
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue

FULL = replace(ENGINE, kv_blocks=4)  # two decodes of 32 tokens fill it; each needs a block for its next token


def test_the_later_begun_gives_way_and_nobody_begins():
    jobs = [decode("d", 1.0, context=32), decode("e", 0.1, context=32), prompt("a", 1)]
    allocation = answer(SarathiPolicy(context(FULL)), jobs, engine=FULL)
    assert ids(allocation.preempted) == ["e"]
    assert tokens(allocation) == {"d": 1}


def test_a_policy_may_rank_who_gives_way():
    jobs = [decode("d", 1.0, context=32), decode("e", 0.1, context=32)]
    allocation = answer(EdfPolicy(context(FULL)), jobs, engine=FULL)
    assert ids(allocation.preempted) == ["d"]
    assert tokens(allocation) == {"e": 1}


def test_qoserve_preempts_a_prompt_before_a_decode():
    jobs = [prompt("p", 100, done=32, due_s=0.2), decode("d", 9.0, context=32)]
    allocation = answer(QoServePolicy(context(FULL)), jobs, engine=FULL)
    assert ids(allocation.preempted) == ["p"]
    assert tokens(allocation) == {"d": 1}


def test_best_effort_gives_way_before_all_others():
    jobs = [best_effort(decode("s", 0.0, context=32)), decode("d", 1.0, context=32)]
    allocation = answer(SarathiPolicy(context(FULL)), jobs, engine=FULL)
    assert ids(allocation.preempted) == ["s"]
    assert tokens(allocation) == {"d": 1}


def test_best_effort_gives_way_to_a_waiting_prompt_if_that_is_enough():
    jobs = [decode("d", 1.0, context=20), best_effort(decode("s", 0.0, context=20))]
    fits, too_long = prompt("a", 32), prompt("b", 33)
    allocation = answer(SarathiPolicy(context(FULL)), [*jobs, fits], engine=FULL)
    assert (ids(allocation.preempted), tokens(allocation)) == (["s"], {"d": 1, "a": 32})
    allocation = answer(SarathiPolicy(context(FULL)), [*jobs, too_long], engine=FULL)
    assert (ids(allocation.preempted), tokens(allocation)) == ([], {"d": 1, "s": 1})


def test_best_effort_gives_way_for_sequences():
    engine = replace(ENGINE, max_num_seqs=2)
    jobs = [decode("d", 1.0), best_effort(decode("s", 0.0)), prompt("a", 8)]
    allocation = answer(SarathiPolicy(context(engine)), jobs, engine=engine)
    assert (ids(allocation.preempted), tokens(allocation)) == (["s"], {"d": 1, "a": 8})


def test_a_prompt_begins_only_where_all_of_it_fits_beside_what_has_begun():
    engine = replace(ENGINE, kv_blocks=6)
    begun = prompt("p", 64, done=16, release_s=1.0)  # holds 1 block and needs 3 more
    policy = SarathiPolicy(context(engine), cap_tokens=32)
    fits, too_long = prompt("a", 32, release_s=2.0), prompt("b", 33, release_s=2.0)
    assert tokens(answer(policy, [replace(begun), too_long], engine=engine)) == {"p": 32}
    policy = SarathiPolicy(context(engine), cap_tokens=64)
    assert tokens(answer(policy, [replace(begun), fits], engine=engine)) == {"p": 48, "a": 16}
    policy = SarathiPolicy(context(engine), cap_tokens=64)
    assert tokens(answer(policy, [replace(begun), too_long], engine=engine)) == {"p": 48}


def test_a_context_that_can_never_fit_is_rejected_and_bars_nobody():
    allocation = answer(SarathiPolicy(context(FULL)), [prompt("a", 65), prompt("b", 8)], engine=FULL)
    assert (ids(allocation.rejected), tokens(allocation)) == (["a"], {"b": 8})


def test_of_two_prompts_that_block_each_other_one_gives_way():
    jobs = [prompt("a", 48, done=32, release_s=1.0), prompt("b", 48, done=32, release_s=2.0)]
    allocation = answer(SarathiPolicy(context(FULL)), jobs, engine=FULL)
    assert (ids(allocation.preempted), tokens(allocation)) == (["b"], {"a": 16})


def test_a_demoted_job_gives_way_as_best_effort_does():
    state = snapshot([decode("d", 1.0, context=32), decode("e", 0.1, context=32)], engine=FULL)
    step = Step(state)
    step.demote(state.running[0])
    step.decode(step.decodes)
    allocation = step.allocation()
    assert (ids(allocation.demoted), ids(allocation.preempted), tokens(allocation)) == (["d"], ["d"], {"e": 1})


def test_the_last_in_rank_waits_with_its_blocks_while_others_go_on():
    jobs = [decode("d", 1.0, context=20), decode("e", 0.1, context=32)]
    allocation = answer(SarathiPolicy(context(FULL)), jobs, engine=FULL)
    assert (ids(allocation.preempted), tokens(allocation)) == ([], {"d": 1})


def test_a_prompt_in_part_keeps_the_blocks_that_it_still_needs():
    engine = replace(ENGINE, kv_blocks=4)
    queue = WaitingQueue(lambda job: job.due_s)
    state = snapshot([prompt("a", 48, due_s=1.0), prompt("b", 20, due_s=2.0)], engine=engine)
    queue.sync(state.waiting)
    step = Step(state)
    step.prefill(queue, 0.026)
    assert tokens(step.allocation()) == {"a": 16}
    step.prefill(queue)  # 3 blocks are free, 2 of them owed to `a`
    assert tokens(step.allocation()) == {"a": 16}


def test_best_effort_decodes_stop_where_they_would_make_another_late():
    jobs = [decode("d", 0.0405), *(best_effort(decode(f"s{k}", 0.0)) for k in range(60))]
    assert len(tokens(answer(EdfPolicy(context()), jobs))) == 30


def test_best_effort_is_served_where_nothing_else_is_however_little_time_is_given():
    queue = WaitingQueue(lambda job: job.due_s)
    state = snapshot([best_effort(prompt("s", 30))])
    queue.sync(state.waiting)
    step = Step(state)
    step.serve_spare(queue, 0.0)
    assert tokens(step.allocation()) == {"s": 30}


def test_a_running_job_that_sits_out_keeps_its_sequence():
    engine = replace(ENGINE, max_num_seqs=3)
    jobs = [decode("t", 9.0), decode("l", 9.0, tpot_s=0.1), prompt("a", 8), prompt("b", 8)]
    assert tokens(answer(ScorpioPolicy(context(engine)), jobs, engine=engine)) == {"t": 1, "a": 8}


# The waiting queue.


def waiting(*due_s: float) -> list[Job]:
    return [prompt(f"w{k}", 10 + k, due_s=value) for k, value in enumerate(due_s)]


def drain(queue: WaitingQueue) -> list[str]:
    return [queue.pop().id for _ in range(len(queue))]


def test_the_queue_goes_by_key_and_then_by_arrival():
    queue = WaitingQueue(lambda job: job.due_s)
    queue.sync(waiting(3.0, 1.0, 2.0, 1.0))
    assert queue.tokens == 46
    assert drain(queue) == ["w1", "w3", "w2", "w0"]
    assert queue.tokens == 0


@given(st.randoms(use_true_random=False), st.booleans())
def test_the_queue_equals_one_that_is_sorted_at_every_step(rng: random.Random, obedient: bool):
    queue = WaitingQueue(lambda job: job.due_s)
    jobs: list[Job] = []

    def drawn(k: int, first: int, last: int) -> list[Job]:
        dues_s = [rng.randint(0, 9) + i / 10 + k / 1000 for i in range(first, last)]
        return [prompt(str(due_s), rng.randint(1, 9), due_s=due_s) for due_s in dues_s]

    for k in range(30):
        arrivals, preempted = drawn(k, 0, rng.randint(0, 3)), drawn(k, 4, rng.randint(4, 5))
        jobs = [*preempted, *jobs, *arrivals]
        if not obedient and rng.random() < 0.3:
            jobs = [job for job in jobs if rng.random() < 0.8]
        queue.sync(jobs)
        assert queue.tokens == sum(job.left_tokens for job in jobs)
        for _ in range(rng.randint(0, min(3, len(jobs)))):
            least = min(jobs, key=lambda job: job.due_s)
            assert queue.first() is least
            assert queue.pop() is least
            jobs.remove(least)
    assert drain(queue) == ids(sorted(jobs, key=lambda job: job.due_s))


def test_the_queue_keeps_best_effort_apart_by_arrival():
    queue = WaitingQueue(lambda job: job.due_s)
    jobs = [best_effort(prompt("s", 5, due_s=0.0, release_s=2.0)), *waiting(3.0, 1.0)]
    queue.sync(jobs)
    assert len(queue) == 2
    assert queue.demote().id == "w1"
    assert drain(queue) == ["w0"]
    assert [queue.pop_spare().id, queue.pop_spare().id] == ["w1", "s"]
    assert queue.first_spare() is None


# The batch.


@given(st.randoms(use_true_random=False))
def test_decodes_at_once_are_decodes_one_by_one(rng: random.Random):
    jobs = [decode(f"d{k}", 0.0, context=rng.choice([15, 16, 17])) for k in range(rng.randint(0, 6))]
    held = sum(job.kv_blocks for job in jobs)
    engine = replace(
        ENGINE,
        kv_blocks=max(1, held + rng.randint(0, 3)),
        max_num_seqs=rng.randint(1, 8),
        max_num_batched_tokens=rng.randint(1, 8),
        decode_context_s=1e-5,
    )
    once, single = BatchBuilder(snapshot(jobs, engine=engine)), BatchBuilder(snapshot(jobs, engine=engine))
    added = once.add_decodes(jobs)
    count = 0
    while count < len(jobs) and single.add(jobs[count], 1):
        count += 1
    assert added == count
    assert once.entries == single.entries
    left = [(batch.tokens_left, batch.seqs_left, batch.free_blocks) for batch in (once, single)]
    assert left[0] == left[1]
    assert once.time_s == pytest.approx(single.time_s)
