"""Random plans that vLLM's scheduler can follow to the letter: within its limits, its KV blocks and its rules."""

import random

from slo_opt.engine_bridge.steering import (
    StepPlan,
    cached_tokens,
    engine_limits,
    free_kv_blocks,
    held_blocks,
    next_tokens,
    waiting_requests,
)


def random_step_plan(scheduler, rng: random.Random, preempt_share: float = 0.03) -> StepPlan:
    """A plan for the scheduler's present state.

    Some running requests are preempted, some held back; the others get a random part of what they can take, in random
    order. Some waiting ones start, with a random part of their prompt. All of it fits in the free KV blocks.
    """
    limits = engine_limits(scheduler)
    budget = limits.max_num_batched_tokens
    if rng.random() < 0.3:
        budget = rng.randint(1, budget)
    plan = StepPlan()
    waiting = list(waiting_requests(scheduler))
    running = list(scheduler.running)
    rng.shuffle(running)
    free = free_kv_blocks(scheduler)
    preempted = [request for request in running if rng.random() < preempt_share]
    for request in preempted:
        free += _own_blocks(scheduler, request)
    plan.preempt = [request.request_id for request in preempted]
    kept = [request for request in running if request not in preempted]
    plan.victims = [request.request_id for request in rng.sample(kept, len(kept) // 2)]
    for request in kept:
        most = min(next_tokens(scheduler, request), budget)
        if most < 1 or rng.random() < 0.15:
            continue
        tokens = most if rng.random() < 0.5 else rng.randint(1, most)
        held = held_blocks(scheduler, request)
        end = min(request.num_computed_tokens + tokens + limits.lookahead_tokens, limits.max_model_len)
        extra = max(-(-end // limits.block_size_tokens) - held, 0)
        if extra > free:
            continue
        free -= extra
        budget -= tokens
        plan.tokens.append((request.request_id, tokens))
    slots = limits.max_num_seqs - len(kept)
    rng.shuffle(waiting)
    for request in waiting:
        if slots < 1 or budget < 1 or rng.random() < 0.5:
            continue
        hit = cached_tokens(scheduler, request)
        left = request.num_tokens - hit
        most = min(left, budget)
        tokens = most if rng.random() < 0.5 else rng.randint(1, most)
        need = _blocks_to_start(request, hit + tokens + limits.lookahead_tokens, limits)
        whole = _blocks_to_start(request, request.num_tokens, limits) if limits.admits_whole_prompts else 0
        spare = limits.spare_blocks if kept or plan.tokens else 0
        if max(need, whole) + spare > free:
            continue
        free -= need
        budget -= tokens
        slots -= 1
        plan.tokens.append((request.request_id, tokens))
    return plan


def _blocks_to_start(request, tokens: int, limits) -> int:
    """Blocks that a waiting request takes from the pool at most; those it shares may be fewer."""
    return -(-min(tokens, limits.max_model_len) // limits.block_size_tokens)


def _own_blocks(scheduler, request) -> int:
    """Blocks that come free when a request is preempted."""
    (blocks,) = scheduler.kv_cache_manager.get_blocks(request.request_id).blocks
    return sum(1 for block in blocks if block.ref_cnt == 1)
