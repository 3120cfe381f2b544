"""Jobs, engines and snapshots by hand, for cases that are worked out on paper."""

from typing import Any

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import Allocation, AllocationPolicy, EngineSnapshot, Job, Standing
from slo_opt.policies.lengths import LengthPredictor, NoLengths
from slo_opt.policies.registry import PolicyContext

# A batch of n tokens takes 10 + n ms: 40 tokens in 50 ms, 90 in 100 ms.
ENGINE = EngineModel("hand", "by hand", (RooflinePiece(1e-3, 1e-2),), kv_blocks=1000, max_num_batched_tokens=4096)
CLASSES = {
    "tight": SloClass("tight", 50.0, ttft_ms=500.0),
    "loose": SloClass("loose", 100.0, ttft_ms=1000.0),
    "spare": SloClass("spare", 10.0, ttft_ms=1000.0, best_effort=True),
}


def context(
    engine: EngineModel = ENGINE, lengths: LengthPredictor | None = None, *, decodes: bool = True
) -> PolicyContext:
    return PolicyContext(engine, CLASSES, lengths or NoLengths(), decodes)


def prompt(
    id: str, tokens: int, due_s: float = 10.0, *, done: int = 0, engine: EngineModel = ENGINE, **has: Any
) -> Job:
    """A job whose prompt is computed up to `done`; it waits if that is 0."""
    blocks = engine.kv_blocks_for(done)
    job = Job(id, "tight", "tight", 1.0, tpot_s=0.05, first_due_s=due_s, due_s=due_s)
    return _with(job, prompt_tokens=tokens, known_tokens=tokens, computed_tokens=done, kv_blocks=blocks, **has)


def decode(id: str, due_s: float, *, context: int = 16, engine: EngineModel = ENGINE, **has: Any) -> Job:
    """A job with `context` tokens in its KV cache, whose next token is due at `due_s`."""
    job = Job(id, "tight", "tight", 1.0, tpot_s=0.05, due_s=due_s, decoding=True, standing=Standing.ADMITTED)
    blocks = engine.kv_blocks_for(context)
    return _with(job, known_tokens=context + 1, computed_tokens=context, emitted_tokens=1, kv_blocks=blocks, **has)


def _with(job: Job, **has: Any) -> Job:
    for name, value in has.items():
        setattr(job, name, value)
    return job


def best_effort(job: Job) -> Job:
    job.standing, job.value = Standing.BEST_EFFORT, 0.0
    return job


def snapshot(jobs: list[Job], *, now_s: float = 0.0, engine: EngineModel = ENGINE, **has: Any) -> EngineSnapshot:
    """Jobs with KV blocks run, the others wait, each in the order given."""
    running, waiting = [job for job in jobs if job.kv_blocks], [job for job in jobs if not job.kv_blocks]
    free = engine.kv_blocks - sum(job.kv_blocks for job in running)
    assert free >= 0
    return EngineSnapshot(now_s, engine, running, waiting, free, **has)


def answer(policy: AllocationPolicy, jobs: list[Job], **has: Any) -> Allocation:
    return policy.decide(snapshot(jobs, **has))


def tokens(allocation: Allocation) -> dict[str, int]:
    return {job.id: count for job, count in allocation.tokens}


def ids(jobs: Any) -> list[str]:
    return [job.id for job in jobs]
