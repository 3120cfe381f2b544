"""Exact start times for batches whose contents are known: earliest solution of a system of differences."""

from dataclasses import dataclass
from itertools import pairwise

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.formulations.batches_rounds import CLOCK, RELEASE, Round


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in the batches, without times.

    Parameters
    ----------
    chunks : tuple of tuple of int
        Prompt tokens of each round (rows) in each batch.
    tokens : tuple of tuple of int
        Batch of each output token of each round; empty for a round that is not served.
    clock_late : tuple of bool
        Whether a round's first token counts as later than its deadline (score rule ``first-late-shifts``).
    """

    chunks: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    clock_late: tuple[bool, ...]


def timed_schedule(instance: Instance, rounds: tuple[Round, ...], contents: Contents) -> Schedule:
    """The batches at the earliest times that respect releases, order, and limits between tokens.

    Deadlines at fixed times are not looked at: `evaluate` says whether they hold. Nor is there any promise where the
    limits contradict each other.

    Parameters
    ----------
    instance : Instance
        The requests and the engine.
    rounds : tuple of Round
        Those of the instance.
    contents : Contents
        What is in the batches.
    """
    count = len(contents.chunks[0]) if contents.chunks else 0
    entries: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    times_s: list[float] = []
    past = [rnd.cached_tokens for rnd in rounds]
    for b in range(count):
        context, pairs = 0, 0.0
        for r, rnd in enumerate(rounds):
            chunk = contents.chunks[r][b]
            if chunk:
                pairs += prefill_pairs(chunk, past[r])
                past[r] += chunk
                entries[b].append((rnd.request, chunk))
            elif b in contents.tokens[r][1:]:
                context += past[r]
                past[r] += 1
                entries[b].append((rnd.request, 1))
        total = sum(tokens for _, tokens in entries[b])
        times_s.append(
            instance.engine.batch_time_s(
                total, decode_context_tokens=context, prefill_pairs=pairs, num_requests=len(entries[b])
            )
        )
    used = [b for b in range(count) if entries[b]]
    earliest = dict.fromkeys(used, 0.0)
    # (i, j, lag): batch j starts at least lag after batch i does.
    lags = [(i, j, times_s[i]) for i, j in pairwise(used)]
    for r, rnd in enumerate(rounds):
        tokens = contents.tokens[r]
        if not tokens:
            continue
        before = None if rnd.first else contents.tokens[r - 1][-1]
        release_s = rnd.arrival_s + rnd.pause_s
        for b in (b for b in used if contents.chunks[r][b]):
            if before is None:
                earliest[b] = max(earliest[b], release_s)
            else:
                lags.append((before, b, times_s[before] + rnd.pause_s))
        for limit in rnd.limits:
            anchor, lag_s = limit.anchor, limit.lag_s
            if anchor == CLOCK:
                anchor, lag_s = (1, lag_s) if contents.clock_late[r] else (RELEASE, lag_s + rnd.ttft_s)
            late = tokens[limit.token - 1]
            origin = before if anchor == RELEASE else tokens[anchor - 1]
            if origin is not None:
                lag_s += rnd.pause_s if anchor == RELEASE else 0.0
                lags.append((late, origin, times_s[late] - times_s[origin] - lag_s))
    for _ in range(len(used) + 1):
        moved = False
        for i, j, lag_s in lags:
            if earliest[i] + lag_s > earliest[j]:
                earliest[j] = earliest[i] + lag_s
                moved = True
        if not moved:
            break
    batches = [Batch(earliest[b], [i for i, _ in entries[b]], [t for _, t in entries[b]]) for b in used]
    return Schedule.from_batches(batches, {rnd.request for r, rnd in enumerate(rounds) if contents.tokens[r]})
