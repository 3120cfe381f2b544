"""The batch in the making keeps its figures equal to those of its entries, whatever comes in and goes out again."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.interface import EngineSnapshot, Job

SEEDS = st.integers(0, 10**9)


def drawn(seed):
    """A state of an engine: decodes, begun prefills, and jobs that wait."""
    rng = random.Random(seed)
    engine = replace(
        engine_named(rng.choice(sorted(ENGINES))),
        block_size_tokens=rng.choice([1, 16]),
        max_num_batched_tokens=rng.choice([8, 300, 8192]),
        max_num_seqs=rng.choice([2, 256]),
    )
    running, waiting = [], []
    for i in range(rng.randint(1, 12)):
        known, decoding = rng.randint(2, 500), rng.random() < 0.5
        computed = known - 1 if decoding else rng.choice([0, rng.randint(0, known - 1)])
        held = computed if decoding or rng.random() < 0.7 else 0  # a waiting job may have cached tokens
        blocks = engine.kv_blocks_for(held)
        job = Job(f"j{i}", "chat", "chat", 1.0, known_tokens=known, computed_tokens=computed, kv_blocks=blocks)
        job.decoding = decoding
        (running if blocks else waiting).append(job)
    free = rng.choice([0, 3, 20, 4000])
    return rng, EngineSnapshot(0.0, engine, running, waiting, free, acceptance=0.5)


def time_s(engine, entries):
    """The batch time written out anew."""
    return engine.batch_time_s(
        sum(tokens for _, tokens in entries),
        decode_context_tokens=sum(job.computed_tokens for job, _ in entries if job.decoding),
        prefill_pairs=sum(prefill_pairs(tokens, job.computed_tokens) for job, tokens in entries if not job.decoding),
        num_requests=len(entries),
        draft_steps=max((tokens - 1 for job, tokens in entries if job.decoding), default=0),
    )


def assert_consistent(batch, snapshot, dropped):
    engine, entries = snapshot.engine, batch.entries
    taken = sum(engine.kv_blocks_for(job.computed_tokens + tokens) - job.kv_blocks for job, tokens in entries)
    freed = sum(job.kv_blocks for job in dropped)
    assert batch.free_blocks == snapshot.free_kv_blocks + freed - taken >= 0
    assert batch.num_tokens == sum(tokens for _, tokens in entries)
    assert batch.num_tokens + batch.tokens_left == engine.max_num_batched_tokens
    assert len(entries) + batch.seqs_left == engine.max_num_seqs
    assert batch.time_s == pytest.approx(time_s(engine, entries), rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_figures_are_those_of_the_entries(seed):
    rng, snapshot = drawn(seed)
    batch, dropped = BatchBuilder(snapshot), []
    decodes = [job for job in snapshot.running if job.decoding]
    added = batch.add_decodes(decodes[: rng.randint(0, len(decodes))])
    assert [job for job, _ in batch.entries] == decodes[:added]
    assert_consistent(batch, snapshot, dropped)
    for _ in range(20):
        inside = [job for job, _ in batch.entries]
        outside = [j for j in (*snapshot.running, *snapshot.waiting) if j not in inside and j not in dropped]
        victims = [job for job in snapshot.running if job not in dropped]
        move = rng.random()
        if move < 0.6 and outside:
            job = rng.choice(outside)
            tokens = rng.randint(0, 4) if job.decoding else rng.randint(0, job.left_tokens)
            fits = (
                1 <= tokens <= batch.tokens_left
                and batch.seqs_left >= 1
                and batch.blocks_for(job, tokens) <= batch.free_blocks
            )
            assert batch.add(job, tokens) == fits
        elif move < 0.8 and inside:
            position = rng.randrange(len(inside))
            assert batch.remove(position)[0] is inside[position]
        elif victims:
            victim = rng.choice(victims)
            assert batch.drop(victim) == (victim in inside)
            dropped.append(victim)
        assert_consistent(batch, snapshot, dropped)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_chunk_is_the_largest_that_ends_in_time(seed):
    rng, snapshot = drawn(seed)
    engine = snapshot.engine
    batch = BatchBuilder(snapshot)
    for job in snapshot.running[::2]:
        batch.add(job, 1 + rng.randint(0, 3) * (job.decoding and rng.random() < 0.3))
    for job in (*snapshot.running[1::2], *snapshot.waiting):
        if job.decoding:
            continue
        seconds = rng.choice([math.inf, batch.time_s * rng.uniform(0.9, 3.0)])
        chunk = batch.chunk_within(job, seconds)
        assert 0 <= chunk <= job.left_tokens
        if chunk:
            assert time_s(engine, [*batch.entries, (job, chunk)]) <= seconds * (1 + 1e-9) + 1e-9
            assert batch.add(job, chunk)
            batch.remove(len(batch.entries) - 1)
        if chunk < job.left_tokens:
            late = time_s(engine, [*batch.entries, (job, chunk + 1)]) > seconds
            assert late or not batch.add(job, chunk + 1)
