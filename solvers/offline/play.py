"""The kernel: plays the accepted requests batch by batch on the exact engine model.

A batch takes every decode and lasts until the tightest due time of a token in it, prefills fill it in deadline order:
as the batch time is a base plus a rate per token, few long batches leave most time for tokens. It ends earlier where a
known arrival could not start in time otherwise, and starts later where the next arrival can share it.
Decodes run ahead of their pace when there is nothing to prefill; those with a lead stay out of the batches in which
prefills are crowded, so that the lead gained in quiet moments becomes prefill time in busy ones.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.offline.encode import FIRST_LATE_SHIFTS, MEAN_TPOT, Problem
from slo_opt.solvers.offline.state import (
    CAP,
    CLOCK,
    COMPUTED,
    CROWD,
    DECODING,
    DUE,
    EMITTED,
    KNOWN,
    LEAD,
    LOOK_AHEAD_S,
    MARGIN,
    NEXT,
    PAUSED,
    QUEUED,
    RELEASE,
    SETTINGS,
    STAGE,
    WAIT,
    Checkpoints,
    Plan,
    State,
    alias,
    cell_of,
    forget_after,
    restore,
    same,
    save,
)

EVER = 1 << 62  # arrivals that never come
LATE_S = 5e-8  # lateness forgiven, half of what the evaluator forgives
_SETTINGS = SETTINGS


class Batch(NamedTuple):
    """The batch just played, and the requests lost so far.

    Parameters
    ----------
    request, tokens : (N,) int arrays
        Entries.
    lost : (N,) int array
    sizes : (2,) int array
        Entries of the batch; requests lost.
    """

    request: NDArray[np.int64]
    tokens: NDArray[np.int64]
    lost: NDArray[np.int64]
    sizes: NDArray[np.int64]


def new_batch(count: int) -> Batch:
    """Room for `count` requests."""
    request, tokens, lost = (np.zeros(count, dtype=np.int64) for _ in range(3))
    return Batch(request, tokens, lost, np.zeros(2, dtype=np.int64))


@njit(cache=True, nogil=True)
def batch_time_s(p: Problem, tokens: int, context: int, pairs: float, requests: int) -> float:
    """Seconds of a batch: the sums of `EngineModel.batch_time_s`, in its order."""
    roofline = p.slope_s[0] * tokens + p.base_s[0]
    for piece in range(1, len(p.slope_s)):
        roofline = max(roofline, p.slope_s[piece] * tokens + p.base_s[piece])
    return roofline + p.decode_context_s * context + p.prefill_pair_s * pairs + p.request_s * requests + p.host_s


@njit(cache=True, nogil=True)
def chunk_within(
    p: Problem, budget_s: float, most: int, tokens: int, context: int, pairs: float, requests: int, past: int
) -> int:
    """Most prefill tokens that join a batch which must not last longer than `budget_s`."""
    fixed_s = p.decode_context_s * context + p.prefill_pair_s * pairs + p.request_s * requests + p.host_s
    curve = p.prefill_pair_s / 2
    best = float(most)
    for piece in range(len(p.slope_s)):
        left_s = budget_s - fixed_s - p.slope_s[piece] * tokens - p.base_s[piece]
        if left_s < 0:
            return 0
        slope = p.slope_s[piece] + p.prefill_pair_s * (past + 0.5)
        if slope > 0:
            best = min(best, 2 * left_s / (slope + np.sqrt(slope * slope + 4 * curve * left_s)))
    chunk = int(best + 1e-9)
    while chunk > 0:
        more = pairs + chunk * (past + (chunk + 1) / 2)
        if batch_time_s(p, tokens + chunk, context, more, requests) <= budget_s:
            break
        chunk -= 1
    return chunk


@njit(cache=True, nogil=True)
def _blocks(tokens: int, block_size: int) -> int:
    return (tokens + block_size - 1) // block_size


@njit(cache=True, nogil=True)
def _open_stage(p: Problem, s: State, q: int, release_s: float) -> None:
    """A stage with a prompt comes up: paused until `settle` finds it released."""
    stage = s.counts[q, STAGE]
    s.counts[q, EMITTED] = 0
    s.counts[q, COMPUTED] = p.cached_tokens[stage]
    s.counts[q, KNOWN] = p.cached_tokens[stage] + p.prompt_tokens[stage]
    s.times[q, RELEASE] = release_s
    s.times[q, CLOCK] = release_s + p.limit_s[stage]
    s.times[q, DUE] = release_s + p.first_limit_s[stage]
    s.lists[PAUSED, s.sizes[PAUSED]] = q
    s.sizes[PAUSED] += 1


@njit(cache=True, nogil=True)
def _enqueue(plan: Plan, s: State, q: int) -> None:
    key = s.times[q, DUE] + plan.offset_s[q]
    at = s.sizes[QUEUED]
    while at > 0 and s.times[s.lists[QUEUED, at - 1], DUE] + plan.offset_s[s.lists[QUEUED, at - 1]] > key:
        s.lists[QUEUED, at] = s.lists[QUEUED, at - 1]
        at -= 1
    s.lists[QUEUED, at] = q
    s.sizes[QUEUED] += 1


@njit(cache=True, nogil=True)
def _lose(b: Batch, q: int) -> None:
    b.lost[b.sizes[1]] = q
    b.sizes[1] += 1


@njit(cache=True, nogil=True)
def _next_event_s(p: Problem, plan: Plan, s: State) -> float:
    """Next accepted arrival or release; infinite if there is none."""
    event_s = np.inf
    j = s.sizes[NEXT]
    while j < len(p.arrival_s) and not plan.accept[j]:
        j += 1
    if j < len(p.arrival_s):
        event_s = p.arrival_s[j]
    for k in range(s.sizes[PAUSED]):
        event_s = min(event_s, s.times[s.lists[PAUSED, k], RELEASE])
    return event_s


@njit(cache=True, nogil=True)
def settle(p: Problem, plan: Plan, s: State, b: Batch) -> bool:
    """Let arrive what has, lose prefills that cannot be in time, go to the next event if idle; False at the end."""
    while True:
        now_s = s.now_s[0]
        while s.sizes[NEXT] < len(p.arrival_s) and p.arrival_s[s.sizes[NEXT]] <= now_s:
            q = s.sizes[NEXT]
            s.sizes[NEXT] += 1
            if plan.accept[q]:
                s.counts[q, STAGE] = p.first_stage[q]
                _open_stage(p, s, q, p.arrival_s[q] + p.pause_s[p.first_stage[q]])
        kept = 0
        for k in range(s.sizes[PAUSED]):
            q = s.lists[PAUSED, k]
            if s.times[q, RELEASE] <= now_s:
                _enqueue(plan, s, q)
            else:
                s.lists[PAUSED, kept] = q
                kept += 1
        s.sizes[PAUSED] = kept
        kept = 0
        for k in range(s.sizes[QUEUED]):
            q = s.lists[QUEUED, k]
            past = s.counts[q, COMPUTED]
            left = s.counts[q, KNOWN] - past
            least_s = batch_time_s(p, left, 0, left * (past + (left + 1) / 2), 1)
            if left <= p.max_num_batched_tokens and now_s + least_s > s.times[q, DUE] + LATE_S:
                _lose(b, q)
            else:
                s.lists[QUEUED, kept] = q
                kept += 1
        s.sizes[QUEUED] = kept
        if s.sizes[DECODING] + s.sizes[QUEUED] > 0:
            return True
        now_s = _next_event_s(p, plan, s)
        if now_s == np.inf:
            return False
        s.now_s[0] = now_s


@njit(cache=True, nogil=True)
def _room_for(p: Problem, s: State, new: int) -> bool:
    """Whether the KV cache holds a new prefill until all in flight departs, if every decode joins every batch."""
    members, ahead = 0, s.sizes[DECODING] + s.sizes[QUEUED] + 1
    size, left = np.empty(ahead, np.int64), np.empty(ahead, np.int64)
    total = 0
    for which in range(2):
        for k in range(s.sizes[which]):
            q = s.lists[which, k]
            stage = s.counts[q, STAGE]
            waiting = which == QUEUED
            if waiting and q != new and s.counts[q, COMPUTED] == p.cached_tokens[stage]:
                continue
            size[members] = s.counts[q, KNOWN] if waiting else s.counts[q, COMPUTED]
            left[members] = p.output_tokens[stage] - s.counts[q, EMITTED] + p.tail_tokens[stage] - waiting
            total += _blocks(size[members] + left[members], p.block_size_tokens)
            members += 1
    if total <= p.kv_blocks:
        return True
    for i in range(members):
        total = 0
        for k in range(members):
            if left[k] >= left[i]:
                total += _blocks(size[k] + left[i], p.block_size_tokens)
        if total > p.kv_blocks:
            return False
    return True


@njit(cache=True, nogil=True)
def _choose_decodes(p: Problem, s: State, held: int, chosen: NDArray[np.bool_]) -> None:
    """Leave out the decodes with most slack when seats or KV blocks are short."""
    count, queued = s.sizes[DECODING], s.sizes[QUEUED]
    seats = max(1, p.max_num_seqs - min(queued, p.max_num_seqs // 8))
    seats = min(seats, p.max_num_batched_tokens)
    if count > seats:
        due = np.empty(count)
        for k in range(count):
            due[k] = s.times[s.lists[DECODING, k], DUE]
        order = np.argsort(due)
        for k in range(seats, count):
            chosen[order[k]] = False
    for k in range(count):
        if chosen[k] and s.counts[s.lists[DECODING, k], COMPUTED] % p.block_size_tokens == 0:
            held += 1
    while held > p.kv_blocks:
        slackest = -1
        for k in range(count):
            q = s.lists[DECODING, k]
            grows = chosen[k] and s.counts[q, COMPUTED] % p.block_size_tokens == 0
            if grows and (slackest < 0 or s.times[q, DUE] > s.times[s.lists[DECODING, slackest], DUE]):
                slackest = k
        if slackest < 0:
            return
        chosen[slackest] = False
        held -= 1


@njit(cache=True, nogil=True)
def _held_blocks(p: Problem, s: State) -> tuple[int, int]:
    """KV blocks held, and how many more the next token of every decode takes."""
    held, growth = 0, 0
    for k in range(s.sizes[DECODING]):
        computed = s.counts[s.lists[DECODING, k], COMPUTED]
        held += _blocks(computed, p.block_size_tokens)
        growth += computed % p.block_size_tokens == 0
    for k in range(s.sizes[QUEUED]):
        q = s.lists[QUEUED, k]
        if s.counts[q, COMPUTED] > p.cached_tokens[s.counts[q, STAGE]]:
            held += _blocks(s.counts[q, COMPUTED], p.block_size_tokens)
    return held, growth


@njit(cache=True, nogil=True)
def _prefill_s(p: Problem, tokens: int, past: int) -> float:
    """Engine time of a chunk beside the base of its batch."""
    return p.slope_s.max() * tokens + p.prefill_pair_s * tokens * (past + (tokens + 1) / 2)


@njit(cache=True, nogil=True)
def _crowded(p: Problem, plan: Plan, s: State, share: float, spare_s: float) -> bool:
    """Whether prefills have less than `spare_s` of slack if they get `share` of the engine's time.

    The queue is judged in its order, a known arrival behind all that is due before it.
    """
    now_s, queued = s.now_s[0], s.sizes[QUEUED]
    total_s = 0.0
    for k in range(queued):
        q = s.lists[QUEUED, k]
        total_s += _prefill_s(p, s.counts[q, KNOWN] - s.counts[q, COMPUTED], s.counts[q, COMPUTED]) / share
        if now_s + total_s + spare_s > s.times[q, DUE]:
            return True
    j = s.sizes[NEXT]
    while j < len(p.arrival_s) and p.arrival_s[j] < now_s + min(total_s, LOOK_AHEAD_S):
        if plan.accept[j]:
            stage = p.first_stage[j]
            due_s = p.arrival_s[j] + p.pause_s[stage] + p.first_limit_s[stage]
            own_s = _prefill_s(p, p.prompt_tokens[stage], 0) / share
            total_s += own_s
            if now_s + total_s + spare_s > due_s:
                before_s = own_s
                for k in range(queued):
                    q = s.lists[QUEUED, k]
                    if s.times[q, DUE] <= due_s:
                        past = s.counts[q, COMPUTED]
                        before_s += _prefill_s(p, s.counts[q, KNOWN] - past, past) / share
                for i in range(s.sizes[NEXT], j):
                    stage = p.first_stage[i]
                    if plan.accept[i] and p.arrival_s[i] + p.pause_s[stage] + p.first_limit_s[stage] <= due_s:
                        before_s += _prefill_s(p, p.prompt_tokens[stage], 0) / share
                if max(now_s + before_s, p.arrival_s[j] + own_s) + spare_s > due_s:
                    return True
        j += 1
    return False


@njit(cache=True, nogil=True)
def _leave_out(s: State, chosen: NDArray[np.bool_], horizon_s: float, reserve_s: float) -> tuple[int, int, float]:
    """Leave out the decodes due after `horizon_s`; decodes left, their context, and when the batch must end.

    A batch of `reserve_s` must still fit between that moment and the first due time of those left out.
    """
    decodes, context, limit_s = 0, 0, np.inf
    for k in range(len(chosen)):
        q = s.lists[DECODING, k]
        chosen[k] = s.times[q, DUE] <= horizon_s
        if chosen[k]:
            decodes += 1
            context += s.counts[q, COMPUTED]
            limit_s = min(limit_s, s.times[q, DUE])
        else:
            limit_s = min(limit_s, s.times[q, DUE] - reserve_s)
    return decodes, context, limit_s


@njit(cache=True, nogil=True)
def step(p: Problem, plan: Plan, setting: NDArray[np.float64], s: State, b: Batch) -> float:
    """Form and play one batch; its start, or NaN if time only moved on. `settle` must have returned True."""
    now_s = s.now_s[0]
    count, queued = s.sizes[DECODING], s.sizes[QUEUED]
    limit_s, first_due_s = np.inf, np.inf
    context, prompt, stored = 0, 0, 0
    counts, times, decoding = s.counts, s.times, s.lists[DECODING]
    for k in range(count):
        q = decoding[k]
        context += counts[q, COMPUTED]
        limit_s = min(limit_s, times[q, DUE])
    for k in range(queued):
        q = s.lists[QUEUED, k]
        first_due_s = min(first_due_s, times[q, DUE])
        prompt += counts[q, KNOWN] - counts[q, COMPUTED]
        stored += counts[q, KNOWN]
    held, growth = 0, 0
    # Only then can memory matter to this batch, and only then are blocks counted.
    if context + stored + (count + queued) * p.block_size_tokens > p.kv_blocks * p.block_size_tokens:
        held, growth = _held_blocks(p, s)

    chosen = np.ones(count, dtype=np.bool_)
    decodes = count
    if count + queued > p.max_num_seqs or count > p.max_num_batched_tokens or held + growth > p.kv_blocks:
        _choose_decodes(p, s, held, chosen)
        decodes, context, growth, limit_s = 0, 0, 0, np.inf
        for k in range(count):
            if chosen[k]:
                q = s.lists[DECODING, k]
                decodes += 1
                context += s.counts[q, COMPUTED]
                growth += s.counts[q, COMPUTED] % p.block_size_tokens == 0
                limit_s = min(limit_s, s.times[q, DUE])
        if decodes == 0 and count > 0:  # the cache is full: the one with most slack makes room
            slackest = 0
            for k in range(count):
                if s.times[s.lists[DECODING, k], DUE] > s.times[s.lists[DECODING, slackest], DUE]:
                    slackest = k
            _lose(b, s.lists[DECODING, slackest])
            for k in range(slackest, count - 1):
                s.lists[DECODING, k] = s.lists[DECODING, k + 1]
            s.sizes[DECODING] -= 1
            return np.nan
    every_s = 0.0
    if queued > 0 and decodes == count > 0 and setting[LEAD] < np.inf:
        whole_s = batch_time_s(p, count, context, 0.0, count)
        share = max(0.1, 1.0 - whole_s / max(limit_s - now_s, whole_s))
        if _crowded(p, plan, s, share, setting[CROWD]):
            every_s = whole_s
            decodes, context, limit_s = _leave_out(s, chosen, now_s + max(setting[LEAD], 3 * whole_s), whole_s)
    held += growth

    if setting[WAIT] > 0:
        event_s = _next_event_s(p, plan, s)
        if event_s <= now_s + setting[WAIT]:
            j = s.sizes[NEXT]
            while j < len(p.arrival_s) and p.arrival_s[j] <= event_s:
                if plan.accept[j]:
                    prompt += p.prompt_tokens[p.first_stage[j]]
                j += 1
            shared_s = batch_time_s(p, decodes + prompt, context, prompt * (prompt + 1) / 2, decodes + queued)
            if event_s + shared_s <= min(limit_s, first_due_s):
                s.now_s[0] = event_s
                return np.nan

    floor_s = now_s + batch_time_s(p, max(decodes, 1), context, 0.0, max(decodes, 1))
    limit_s = min(limit_s, now_s + setting[CAP])
    j = s.sizes[NEXT]
    while j < len(p.arrival_s) and p.arrival_s[j] < limit_s:
        if plan.accept[j]:
            stage = p.first_stage[j]
            size = p.prompt_tokens[stage]
            alone_s = batch_time_s(p, decodes + size, context, size * (size + 1) / 2, decodes + 1)
            start_s = p.arrival_s[j] + p.pause_s[stage] + p.first_limit_s[stage] - alone_s - setting[MARGIN]
            limit_s = min(limit_s, max(start_s, p.arrival_s[j], floor_s))
        j += 1

    entries, tokens, requests, pairs = 0, decodes, decodes, 0.0
    for k in range(count):
        if chosen[k]:
            b.request[entries] = s.lists[DECODING, k]
            b.tokens[entries] = 1
            entries += 1
    for k in range(queued):
        if tokens >= p.max_num_batched_tokens or requests >= p.max_num_seqs:
            break
        q = s.lists[QUEUED, k]
        past = s.counts[q, COMPUTED]
        left = s.counts[q, KNOWN] - past
        cached = p.cached_tokens[s.counts[q, STAGE]]
        before = _blocks(past, p.block_size_tokens) if past > cached else 0
        if before == 0 and not _room_for(p, s, q):
            continue
        most = min(left, p.max_num_batched_tokens - tokens)
        most = min(most, (p.kv_blocks - held + before) * p.block_size_tokens - past)
        if most < 1:
            continue
        whole_s = min(limit_s, s.times[q, DUE])
        chunk = chunk_within(p, whole_s - now_s, most, tokens, context, pairs, requests + 1, past)
        if chunk == left:
            limit_s = whole_s
        else:
            most = min(most, left - 1)
            chunk = chunk_within(p, limit_s - now_s, most, tokens, context, pairs, requests + 1, past)
        if chunk < 1:
            break
        b.request[entries] = q
        b.tokens[entries] = chunk
        entries += 1
        tokens += chunk
        requests += 1
        pairs += chunk * (past + (chunk + 1) / 2)
        held += _blocks(past + chunk, p.block_size_tokens) - before
        if before == 0:
            # Marks it as started, so that the next one sees its reservation.
            s.counts[q, COMPUTED] = past + chunk
        else:
            s.counts[q, COMPUTED] += chunk
    if entries == decodes < count and every_s > 0 and now_s + every_s <= limit_s:
        # No prefill could join, for want of memory perhaps: then leads may grow.
        context, entries = 0, count
        for k in range(count):
            chosen[k] = True
            context += counts[decoding[k], COMPUTED]
            b.request[k] = decoding[k]
            b.tokens[k] = 1
        tokens = requests = count
    b.sizes[0] = entries
    if entries == 0:
        event_s = _next_event_s(p, plan, s)
        if event_s < np.inf:
            s.now_s[0] = event_s
        else:
            _lose(b, s.lists[QUEUED, 0])
            for k in range(1, queued):
                s.lists[QUEUED, k - 1] = s.lists[QUEUED, k]
            s.sizes[QUEUED] -= 1
        return np.nan
    s.now_s[0] = now_s + batch_time_s(p, tokens, context, pairs, requests)
    _emit_all(p, s, b, chosen)
    return now_s


@njit(cache=True, nogil=True)
def _emit_all(p: Problem, s: State, b: Batch, chosen: NDArray[np.bool_]) -> None:
    """Tokens appear at the end of the batch; lists are rebuilt in order."""
    count, queued = s.sizes[DECODING], s.sizes[QUEUED]
    kept, now_s = 0, s.now_s[0]
    # Passing the tuples costs more than the common case of `_emit`, which is therefore written out.
    counts, times, decoding = s.counts, s.times, s.lists[DECODING]
    output_tokens, tpot_s, prompt_tokens = p.output_tokens, p.tpot_s, p.prompt_tokens
    for k in range(count):
        q = decoding[k]
        stays = True
        if chosen[k]:
            counts[q, COMPUTED] += 1
            stage = counts[q, STAGE]
            if counts[q, EMITTED] + 1 < output_tokens[stage] and now_s <= times[q, DUE]:
                counts[q, KNOWN] += 1
                counts[q, EMITTED] += 1
                steps = counts[q, EMITTED] + 1 - (prompt_tokens[stage] > 0)
                times[q, DUE] = times[q, CLOCK] + steps * tpot_s[stage]
            else:
                stays = _emit(p, s, b, q)
        if stays:
            decoding[kept] = q
            kept += 1
    s.sizes[DECODING] = kept
    kept = 0
    finished = s.lists[QUEUED, :queued].copy()
    s.sizes[QUEUED] = 0
    for k in range(queued):
        q = finished[k]
        if s.counts[q, COMPUTED] < s.counts[q, KNOWN]:
            s.lists[QUEUED, kept] = q
            kept += 1
            finished[k] = -1
    s.sizes[QUEUED] = kept
    for k in range(queued):
        q = finished[k]
        if q >= 0 and _emit(p, s, b, q):
            s.lists[DECODING, s.sizes[DECODING]] = q
            s.sizes[DECODING] += 1


@njit(cache=True, nogil=True)
def _emit(p: Problem, s: State, b: Batch, q: int) -> bool:
    """One output token now; whether the request goes on decoding. The token clock is that of `evaluate`."""
    now_s = s.now_s[0]
    stage = s.counts[q, STAGE]
    s.counts[q, KNOWN] += 1
    s.counts[q, EMITTED] += 1
    prompted = p.prompt_tokens[stage] > 0
    steps = s.counts[q, EMITTED] - prompted
    first = prompted and steps == 0
    last = s.counts[q, EMITTED] == p.output_tokens[stage]
    due_s = s.times[q, CLOCK] + steps * p.tpot_s[stage]
    if first:
        due_s = s.times[q, RELEASE] + p.first_limit_s[stage]
        if p.rule == FIRST_LATE_SHIFTS:
            s.times[q, CLOCK] = max(s.times[q, CLOCK], now_s)
        elif p.rule == MEAN_TPOT:
            s.times[q, CLOCK] = now_s
    if (p.rule != MEAN_TPOT or first or last) and now_s > due_s + LATE_S:
        _lose(b, q)
        return False
    if not last:
        s.times[q, DUE] = s.times[q, CLOCK] + (steps + 1) * p.tpot_s[stage]
        return True
    stage += 1
    s.counts[q, STAGE] = stage
    if stage == p.first_stage[q + 1]:
        return False
    if p.prompt_tokens[stage] > 0:
        _open_stage(p, s, q, now_s + p.pause_s[stage])
        return False
    if p.rule == MEAN_TPOT:
        s.times[q, CLOCK] = now_s
    else:
        s.times[q, CLOCK] += steps * p.tpot_s[stage - 1]
    s.counts[q, EMITTED] = 0
    s.times[q, DUE] = s.times[q, CLOCK] + p.tpot_s[stage]
    return True


class Log(NamedTuple):
    """What `play` writes down besides; arrays of length 0 are not written.

    Parameters
    ----------
    start_s, offset, request, tokens : float and int arrays
        Batches as in `Schedule`, ``offset`` one longer than ``start_s``.
    empty : (N,) bool array
        Cleared for each arrival that does not find the replica empty since a cell of time before its own.
    sizes : (1,) int array
        Batches written; -1 when the arrays are too short.
    """

    start_s: NDArray[np.float64]
    offset: NDArray[np.int64]
    request: NDArray[np.int64]
    tokens: NDArray[np.int64]
    empty: NDArray[np.bool_]
    sizes: NDArray[np.int64]


def new_log(batches: int = 0, entries: int = 0, requests: int = 0) -> Log:
    """Room for so many batches with so many entries, and for the arrivals that find the replica empty."""
    return Log(
        np.zeros(batches),
        np.zeros(batches + 1, dtype=np.int64),
        np.zeros(entries, dtype=np.int64),
        np.zeros(entries, dtype=np.int64),
        np.ones(requests, dtype=np.bool_),
        np.zeros(1, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def _write_batch(log: Log, b: Batch, began_s: float) -> None:
    batches, entries = log.sizes[0], b.sizes[0]
    at = log.offset[batches]
    if batches == len(log.start_s) or at + entries > len(log.request):
        log.sizes[0] = -1
        return
    log.start_s[batches] = began_s
    log.request[at : at + entries] = b.request[:entries]
    log.tokens[at : at + entries] = b.tokens[:entries]
    log.offset[batches + 1] = at + entries
    log.sizes[0] = batches + 1


@njit(cache=True, nogil=True)
def _note_empty(p: Problem, plan: Plan, s: State, checkpoints: Checkpoints, empty: NDArray[np.bool_], seen: int) -> int:
    """After a batch, judge the arrivals from `seen` on that it settles; the next one to judge."""
    count = len(empty)
    while seen < count and p.arrival_s[seen] <= s.now_s[0]:
        empty[seen] = False
        seen += 1
    in_flight = s.sizes[DECODING] + s.sizes[QUEUED] + s.sizes[PAUSED]
    for i in range(s.sizes[NEXT], seen):
        in_flight += plan.accept[i]
    if in_flight == 0:
        cell = cell_of(checkpoints, s.now_s[0])
        while seen < count:
            empty[seen] &= cell_of(checkpoints, p.arrival_s[seen]) > cell
            seen += 1
            if plan.accept[seen - 1]:
                break
    return seen


@njit(cache=True, nogil=True)
def play(
    p: Problem,
    plan: Plan,
    s: State,
    b: Batch,
    checkpoints: Checkpoints,
    log: Log,
    start: int,
    record: bool,
    rejoin_s: float,
    max_loss: float,
    until_s: float,
    arrivals: int,
) -> tuple[float, float]:
    """Play on until nothing is left or nothing differs. One function for all uses, since each costs compile time.

    Parameters
    ----------
    log : Log
        What to write down besides.
    start : int
        Cell to take the state from; 0: from the beginning; -1: from the state as it is.
    record : bool
        Keep the states on the way as checkpoints.
    rejoin_s : float
        The plan is that of the checkpoints after this moment: stop where the state is a kept one.
    max_loss : float
        Stop when the value of lost requests exceeds it.
    until_s, arrivals : float, int
        Stop at this moment, or when more requests than that have arrived.

    Returns
    -------
    loss, end_s : float
        Value of the requests lost; time of the stop, infinite at the end of the instance. ``b.lost`` has the names.
    """
    if start >= 0:
        b.sizes[1] = 0
    if start > 0:
        restore(checkpoints, s, start)
    elif start == 0:
        s.sizes[:] = 0
        s.now_s[0] = 0.0
    cell = start if start > 0 else -1
    loss, counted, seen = 0.0, b.sizes[1], 0
    while settle(p, plan, s, b):
        while counted < b.sizes[1]:
            loss += p.value[b.lost[counted]]
            counted += 1
        if loss > max_loss or s.now_s[0] >= until_s or s.sizes[NEXT] > arrivals:
            return loss, s.now_s[0]
        now = cell_of(checkpoints, s.now_s[0])
        if now > cell:
            if s.now_s[0] > rejoin_s and same(checkpoints, s, now):
                if record:
                    alias(checkpoints, cell, now)
                return loss, s.now_s[0]
            if record:
                save(checkpoints, s, cell, now)
            cell = now
        began_s = step(p, plan, _SETTINGS[plan.setting[now]], s, b)
        if len(log.start_s) > 0 and log.sizes[0] >= 0 and not np.isnan(began_s):
            _write_batch(log, b, began_s)
        if len(log.empty) > 0:
            seen = _note_empty(p, plan, s, checkpoints, log.empty, seen)
    while counted < b.sizes[1]:
        loss += p.value[b.lost[counted]]
        counted += 1
    if record:
        forget_after(checkpoints, max(cell, 0))
    return loss, np.inf
