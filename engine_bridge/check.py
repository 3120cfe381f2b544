"""Whether a live engine can carry out what a policy answered."""

from slo_opt.policies.interface import Allocation, EngineSnapshot


def impossible(snapshot: EngineSnapshot, allocation: Allocation) -> str | None:
    """Why the engine cannot do what the allocation says; None if it can.

    The rules of the simulator's `Replica`, without its exceptions: here the answer is to let the engine decide itself.

    Parameters
    ----------
    snapshot : EngineSnapshot
        What the policy was asked about.
    allocation : Allocation
        Its answer.
    """
    engine = snapshot.engine
    running = set(map(id, snapshot.running))
    known = running.union(map(id, snapshot.waiting))
    for job in (*allocation.preempted, *allocation.admitted, *allocation.demoted, *allocation.rejected):
        if id(job) not in known:
            return f"request {job.id!r} is not in the engine"
    preempted = set(map(id, allocation.preempted))
    if not preempted <= running:
        return "a request without KV blocks is preempted"
    gone = preempted.union(map(id, allocation.rejected))
    free = snapshot.free_kv_blocks + sum([job.kv_blocks for job in snapshot.running if id(job) in gone])
    seen: set[int] = set()
    total = 0
    block = engine.block_size_tokens
    for job, tokens in allocation.tokens:
        key = id(job)
        if key not in known or key in gone:
            return f"request {job.id!r} is not in the engine, or leaves it"
        if key in seen:
            return f"request {job.id!r} has two entries"
        seen.add(key)
        if tokens < 1 or (tokens > job.known_tokens - job.computed_tokens and not job.decoding):
            return f"request {job.id!r} gets {tokens} tokens of {job.known_tokens - job.computed_tokens}"
        if tokens > 1 and job.decoding and snapshot.acceptance <= 0:
            return f"request {job.id!r} gets {tokens} tokens of a decode; the engine drafts none"
        total += tokens
        blocks = -(-(job.computed_tokens + tokens) // block)
        if blocks > job.kv_blocks:
            free -= blocks - job.kv_blocks
    if free < 0:
        return f"{-free} KV blocks more than there are"
    if total > engine.max_num_batched_tokens:
        return f"{total} tokens in a batch; the engine takes {engine.max_num_batched_tokens}"
    if len(seen) > engine.max_num_seqs:
        return f"{len(seen)} requests in a batch; the engine takes {engine.max_num_seqs}"
    return None
