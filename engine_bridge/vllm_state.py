"""What a scheduler of ours reads from vLLM's own.

Names of vLLM used here (0.25 to 0.33), all of them attributes or methods of the objects handed in:

- ``Request``: request_id, status, num_tokens, num_computed_tokens, num_output_tokens, num_output_placeholders,
  spec_token_ids, block_hashes, skip_reading_prefix_cache, num_prompt_tokens, max_tokens, num_stale_output_tokens and
  drop_stale_output (0.27), next_decode_eligible_step
- ``Scheduler``: running, waiting, skipped_waiting (to 0.29), kv_holding_waiting and deferred_waiting (0.32),
  current_step, max_model_len, max_num_running_reqs, max_num_active_reqs (0.32), max_num_scheduled_tokens, block_size,
  num_spec_tokens, num_lookahead_tokens, scheduler_reserve_full_isl, kv_cache_manager, scheduler_config,
  _is_blocked_waiting_status, _try_promote_blocked_waiting_request (to 0.29), _handle_blocked_waiting_request (0.32)
- ``KVCacheManager``: enable_caching, num_kv_cache_groups, watermark_blocks, get_blocks, block_pool, coordinator
- ``BlockPool``: num_gpu_blocks, get_num_free_blocks; ``KVCacheCoordinator``: find_longest_cache_hit
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_WAITING = ("WAITING", "PREEMPTED")


@dataclass(frozen=True, slots=True)
class RequestState:
    """Where a request stands, steps in flight included.

    Parameters
    ----------
    known_tokens : int
        Prompt and output tokens that exist or will once the batches in flight have ended. Under asynchronous
        scheduling a decode whose previous token is still being computed counts as known; with drafts in flight, as if
        all of them were accepted.
    computed_tokens : int
        Of those, the ones in the KV cache once the batches in flight have ended (same convention). 0 for a waiting
        request: what the prefix cache holds of it is `cached_tokens`.
    output_tokens : int
        Output tokens, those in flight included (same convention).
    decoding : bool
        It has output, and one token is all that is left to compute.
    draft_tokens : int
        Drafted tokens that can be verified in its next decode.
    """

    known_tokens: int
    computed_tokens: int
    output_tokens: int
    decoding: bool
    draft_tokens: int


def request_state(request: Any) -> RequestState:
    """Where `request` stands."""
    in_flight = request.num_output_placeholders
    known = request.num_tokens + in_flight
    computed = request.num_computed_tokens
    output = request.num_output_tokens + in_flight
    return RequestState(known, computed, output, output > 0 and known - computed == 1, len(request.spec_token_ids))


def waiting_requests(scheduler: Any) -> Iterator[Any]:
    """The waiting requests that may start in the next step, in vLLM's own order.

    Left out are those that vLLM would not start yet: a grammar is being compiled, a session waits for input, output of
    before a preemption is still in flight.
    """
    for queue in waiting_queues(scheduler):
        for request in queue:
            if can_start(request):
                yield request


def waiting_queues(scheduler: Any) -> list[Any]:
    """vLLM's queues of waiting requests."""
    return [getattr(scheduler, name) for name in WAITING_QUEUES if hasattr(scheduler, name)]


WAITING_QUEUES = ("kv_holding_waiting", "skipped_waiting", "waiting")


def can_start(request: Any) -> bool:
    """Whether a waiting request can be scheduled now."""
    if request.status.name not in _WAITING or request.num_output_placeholders:
        return False
    return not getattr(request, "num_stale_output_tokens", 0) or request.drop_stale_output


def next_tokens(scheduler: Any, request: Any) -> int:
    """The most tokens that a running request can take in the next step, drafted ones included.

    0 where it must pause: the batches in flight are sure to bring it to its last token.
    """
    in_flight = request.num_output_placeholders
    computed = request.num_computed_tokens
    if in_flight and computed + 2 - in_flight >= request.num_prompt_tokens + request.max_tokens:
        return 0
    if scheduler.current_step + 1 < getattr(request, "next_decode_eligible_step", 0):
        return 0
    left = request.num_tokens + len(request.spec_token_ids) + in_flight - computed
    return int(max(min(left, scheduler.max_model_len - computed - 1), 0))


def promote_blocked(scheduler: Any) -> None:
    """Let waiting requests whose grammar is compiled wait like all others, as vLLM does when it comes across them."""
    blocked = getattr(scheduler, "deferred_waiting", None)
    if blocked is None:
        blocked = scheduler.skipped_waiting
    if not blocked:
        return
    promote = getattr(scheduler, "_handle_blocked_waiting_request", None)
    promote = promote or scheduler._try_promote_blocked_waiting_request
    for request in list(blocked):
        if scheduler._is_blocked_waiting_status(request.status):
            promote(request)


def cached_tokens(scheduler: Any, request: Any) -> int:
    """Tokens of a waiting request that the prefix cache holds now; no statistics and no cache state is touched.

    Its cost grows with the hit, one look-up a block.
    """
    manager = scheduler.kv_cache_manager
    if request.num_computed_tokens:
        return int(request.num_computed_tokens)
    if not manager.enable_caching or request.skip_reading_prefix_cache:
        return 0
    # The last token is computed in any case, for its logits.
    return int(manager.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)[1])


def held_blocks(scheduler: Any, request: Any) -> int:
    """KV blocks in the request's block table, an average over the model's KV cache groups (rounded up).

    Blocks shared through the prefix cache count for each holder, and come free with the last.
    """
    groups = scheduler.kv_cache_manager.get_blocks(request.request_id).blocks
    if len(groups) == 1:
        return len(groups[0])
    held = sum(1 for blocks in groups for block in blocks if not block.is_null)
    return -(-held // len(groups))


def free_kv_blocks(scheduler: Any) -> int:
    """KV blocks free or evictable, in each of the model's KV cache groups."""
    manager = scheduler.kv_cache_manager
    return int(manager.block_pool.get_num_free_blocks() // manager.num_kv_cache_groups)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What vLLM's settings allow.

    Parameters
    ----------
    kv_blocks, block_size_tokens : int
        KV blocks in all (one in each KV cache group counts as one), and tokens a block.
    max_num_batched_tokens, max_num_seqs, max_model_len : int
        Tokens and requests a batch, tokens a request.
    draft_tokens : int
        Tokens drafted a decode; 0 without speculative decoding.
    lookahead_tokens : int
        KV slots set aside beyond the scheduled tokens of each request, for drafts.
    admits_whole_prompts : bool
        A waiting request starts only where its whole context fits in the free blocks.
    spare_blocks : int
        Blocks that stay free when a waiting request starts beside others (the watermark).
    """

    kv_blocks: int
    block_size_tokens: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    draft_tokens: int
    lookahead_tokens: int
    admits_whole_prompts: bool
    spare_blocks: int


def engine_limits(scheduler: Any) -> EngineLimits:
    """The limits of `scheduler`."""
    manager = scheduler.kv_cache_manager
    active = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
    return EngineLimits(
        # One block of the pool is vLLM's own, for padding.
        kv_blocks=(manager.block_pool.num_gpu_blocks - 1) // manager.num_kv_cache_groups,
        block_size_tokens=scheduler.block_size,
        max_num_batched_tokens=scheduler.max_num_scheduled_tokens,
        max_num_seqs=min(active, scheduler.max_num_running_reqs),
        max_model_len=scheduler.max_model_len,
        draft_tokens=scheduler.num_spec_tokens,
        lookahead_tokens=scheduler.num_lookahead_tokens,
        admits_whole_prompts=bool(getattr(scheduler, "scheduler_reserve_full_isl", False)),
        spare_blocks=getattr(manager, "watermark_blocks", 0),
    )
