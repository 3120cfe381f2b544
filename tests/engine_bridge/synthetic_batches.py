"""Batches of an engine that is known exactly, with noise and stalls where wanted."""

import math
import random
from collections.abc import Iterator

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.engine_bridge.batch_sample import BatchSample


def seconds_of(engine: EngineModel, batch: BatchSample) -> float:
    """What the engine takes for a batch."""
    return engine.batch_time_s(
        batch.num_tokens,
        decode_context_tokens=batch.decode_context_tokens,
        prefill_pairs=batch.prefill_pairs,
        num_requests=batch.num_requests,
        draft_steps=batch.draft_steps,
    )


def mixed_batch(rng: random.Random, *, max_chunk: int = 4000, draft_steps: int = 0) -> BatchSample:
    """Some decodes, now and then with a chunk of prefill; drafts where wanted."""
    decodes = rng.randint(0, 60)
    context = sum(rng.randint(10, 4000) for _ in range(decodes))
    chunk = rng.randint(1, max_chunk) if not decodes or rng.random() < 0.4 else 0
    steps = rng.randint(0, draft_steps) if decodes else 0
    pairs = prefill_pairs(chunk, rng.choice((0, 0, 500, 3000))) if chunk else 0.0
    return BatchSample(decodes * (1 + steps) + chunk, context, pairs, decodes + (chunk > 0), steps)


def run_batches(
    engine: EngineModel,
    count: int,
    seed: int,
    *,
    noise: float = 0.0,
    stall_every: int = 0,
    max_chunk: int = 4000,
    draft_steps: int = 0,
) -> Iterator[BatchSample]:
    """Batches with the times that they took."""
    rng = random.Random(seed)
    for number in range(count):
        batch = mixed_batch(rng, max_chunk=max_chunk, draft_steps=draft_steps)
        seconds = seconds_of(engine, batch) * math.exp(noise * rng.gauss(0, 1))
        yield batch.timed(30.0 if stall_every and number % stall_every == stall_every - 1 else seconds)
