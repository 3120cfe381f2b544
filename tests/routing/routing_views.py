"""Replicas by hand, for cases worked out on paper, and random ones, for what must hold for every router."""

import random
from dataclasses import replace
from typing import Any

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import Job, Standing
from slo_opt.policies.lengths import LengthPredictor, NoLengths
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.registry import RoutingContext

# A batch of n tokens takes 10 + n ms: 40 tokens in 50 ms, 90 in 100 ms.
ENGINE = EngineModel("hand", "by hand", (RooflinePiece(1e-3, 1e-2),), kv_blocks=4000, max_num_batched_tokens=4096)
CLASSES = {
    "tight": SloClass("tight", 50.0, ttft_ms=500.0),
    "loose": SloClass("loose", 100.0, ttft_ms=1000.0),
    "spare": SloClass("spare", 10.0, ttft_ms=1000.0, best_effort=True),
}
NAMES = {0.05: "tight", 0.1: "loose"}


def context(lengths: LengthPredictor | None = None) -> RoutingContext:
    return RoutingContext(CLASSES, lengths or NoLengths())


def prompt(id: str, tokens: int = 20, due_s: float = 1.0, *, tpot_s: float = 0.05, done: int = 0, **has: Any) -> Job:
    """A job whose prompt is computed up to `done`; it waits if that is 0."""
    name = NAMES.get(tpot_s, "tight")
    job = Job(id, name, name, 1.0, tpot_s=tpot_s, first_due_s=due_s, due_s=due_s, prompt_tokens=tokens)
    return _with(job, known_tokens=tokens, computed_tokens=done, kv_blocks=ENGINE.kv_blocks_for(done), **has)


def decode(id: str, *, tpot_s: float = 0.05, tokens: int = 16, due_s: float = 1.0, **has: Any) -> Job:
    """A job with `tokens` tokens in its KV cache, whose next token is due at `due_s`."""
    name = NAMES.get(tpot_s, "tight")
    job = Job(id, name, name, 1.0, tpot_s=tpot_s, due_s=due_s, decoding=True, standing=Standing.ADMITTED)
    blocks = ENGINE.kv_blocks_for(tokens)
    return _with(job, known_tokens=tokens + 1, computed_tokens=tokens, emitted_tokens=1, kv_blocks=blocks, **has)


def arriving(job: Job) -> Job:
    """A decode whose KV is elsewhere."""
    job.kv_blocks = 0
    return job


def decodes(count: int, tpot_s: float = 0.05, **has: Any) -> list[Job]:
    return [decode(f"d{tpot_s}-{k}", tpot_s=tpot_s, **has) for k in range(count)]


def best_effort(job: Job) -> Job:
    job.standing, job.value = Standing.BEST_EFFORT, 0.0
    return job


def _with(job: Job, **has: Any) -> Job:
    for name, value in has.items():
        setattr(job, name, value)
    return job


def view(id: str, jobs: list[Job] | None = None, *, engine: EngineModel = ENGINE, **has: Any) -> ReplicaView:
    """Jobs with KV blocks run, the others wait, each in the order given."""
    running = [job for job in jobs or [] if job.kv_blocks]
    waiting = [job for job in jobs or [] if not job.kv_blocks]
    free = engine.kv_blocks - sum(job.kv_blocks for job in running)
    assert free >= 0
    return ReplicaView(id, engine, running=running, waiting=waiting, free_kv_blocks=free, **has)


def random_engine(rng: random.Random) -> EngineModel:
    return EngineModel(
        "random",
        "drawn",
        (RooflinePiece(1e-5, 8e-3), RooflinePiece(6e-5, 2e-3)),
        decode_context_s=rng.choice([0.0, 1e-6]),
        prefill_pair_s=rng.choice([0.0, 1e-8]),
        request_s=rng.choice([0.0, 1e-4]),
        host_s=1e-3,
        block_size_tokens=rng.choice([1, 4, 16]),
        kv_blocks=rng.choice([100, 1000, 4000]),
        max_num_batched_tokens=rng.choice([32, 256, 2048]),
        max_num_seqs=rng.choice([1, 5, 64]),
    )


def random_job(rng: random.Random, id: str, engine: EngineModel, now_s: float, *, decoding: bool, inside: bool) -> Job:
    """A job in any state, with deadlines from hopeless to slack."""
    tpot_s = rng.choice([0.005, 0.02, 0.05, 0.1])
    due_s = now_s + rng.choice([-0.1, 0.01, 0.2, rng.uniform(0.0, 2.0)])
    tokens = rng.choice([1, 20, rng.randint(1, 300)])
    job = Job(id, "tight", "tight", rng.choice([1.0, 1.0, 0.3, 5.0]), tpot_s=tpot_s, first_due_s=due_s, due_s=due_s)
    job.release_s = now_s - rng.uniform(0.0, 0.5)
    job.standing = rng.choice([Standing.UNDECIDED, Standing.ADMITTED] if inside else [Standing.UNDECIDED])
    job.missed = rng.random() < 0.1
    job.prompt_tokens = tokens
    if decoding:
        job.decoding, job.computed_tokens, job.known_tokens, job.emitted_tokens = True, tokens, tokens + 1, 1
    else:
        job.computed_tokens = rng.choice([0, 0, rng.randrange(tokens)])
        job.known_tokens = tokens
    if inside and job.computed_tokens and rng.random() < 0.9:
        job.kv_blocks = engine.kv_blocks_for(job.computed_tokens)
    if rng.random() < 0.15:
        best_effort(job)
    return job


def random_view(rng: random.Random, id: str, now_s: float, role: Role) -> ReplicaView:
    """A replica with any legal content."""
    engine = random_engine(rng)
    jobs: list[Job] = []
    free = engine.kv_blocks
    for k in range(rng.choice([0, 0, 1, rng.randint(1, 12)])):
        decoding = role is Role.DECODE or (role is Role.BOTH and rng.random() < 0.6)
        job = random_job(rng, f"{id}-{k}", engine, now_s, decoding=decoding, inside=True)
        if job.kv_blocks > free or sum(bool(other.kv_blocks) for other in jobs) >= engine.max_num_seqs:
            job.kv_blocks = 0
        free -= job.kv_blocks
        jobs.append(job)
    ends_s = now_s + rng.choice([-1.0, 0.02, 0.3]) if jobs else -1.0
    found = view(id, jobs, engine=engine, role=role, batch_ends_s=ends_s)
    found.version = rng.randrange(5)
    return found


def random_fleet(rng: random.Random, now_s: float) -> tuple[Role, list[ReplicaView]]:
    role = rng.choice([Role.BOTH, Role.BOTH, Role.PREFILL, Role.DECODE])
    return role, [random_view(rng, f"r{k}", now_s, role) for k in range(rng.choice([1, 2, 3, 6]))]


def contents(replicas: list[ReplicaView]) -> list[Any]:
    """All that a router must leave as it is."""
    found: list[Any] = []
    for one in replicas:
        jobs = [[getattr(job, name) for name in Job.__slots__] for job in (*one.running, *one.waiting)]
        found.append((replace(one, running=[], waiting=[]).id, one.version, one.free_kv_blocks, jobs))
    return found
