"""How much a replica has to do, in counts that every engine has: requests, tokens, KV blocks."""

from dataclasses import dataclass

from slo_opt.routing.interface import ReplicaView


@dataclass(frozen=True, slots=True)
class Load:
    """Counts over all requests in a replica, those of best effort included.

    Parameters
    ----------
    num_requests : int
        Running and waiting.
    queued_tokens : int
        Tokens of prompts yet to be prefilled.
    blocks : int
        KV blocks that are not free, and those that requests will take whose context is not there yet.
    kv_share : float
        `blocks` as a share of the cache; above 1 where more waits than fits.
    """

    num_requests: int
    queued_tokens: int
    blocks: int
    kv_share: float


def load_of(view: ReplicaView) -> Load:
    """The load of a replica."""
    engine = view.engine
    block = engine.block_size_tokens
    queued_tokens, blocks = 0, engine.kv_blocks - view.free_kv_blocks
    for job in view.running:
        if not job.decoding:
            queued_tokens += job.known_tokens - job.computed_tokens
            blocks += max(0, -(-job.known_tokens // block) - job.kv_blocks)
    for job in view.waiting:
        if not job.decoding:
            queued_tokens += job.known_tokens - job.computed_tokens
        blocks += -(-job.known_tokens // block)
    return Load(view.num_requests, queued_tokens, blocks, blocks / engine.kv_blocks)
