"""Batch times from the outside: what a client that sees only tokens arrive can tell of the batches behind them.

On an engine that serves nobody else: the first token of a lone prompt takes one prefill batch and the way there and
back; the time between two tokens of requests that all decode is one decode batch; the gap that a new prompt tears into
running decodes is one mixed batch.
"""

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from slo_opt.domain.engine import prefill_pairs
from slo_opt.engine_bridge.batch_sample import BatchSample

GAPS_A_SAMPLE = 10


@dataclass(frozen=True, slots=True)
class Stream:
    """A request as its client saw it.

    Parameters
    ----------
    prompt_tokens : int
        Sent.
    sent_s : float
        When.
    token_s : tuple of float
        When each token came.
    """

    prompt_tokens: int
    sent_s: float
    token_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.token_s[0] - self.sent_s

    def context_at(self, when_s: float) -> int:
        """Tokens in its KV cache at a moment within its decode."""
        return self.prompt_tokens + max(0, bisect_right(self.token_s, when_s) - 1)


@dataclass(frozen=True, slots=True)
class Probes:
    """All that a sweep saw.

    Parameters
    ----------
    alone : tuple of Stream
        One prompt at a time, one output token each.
    together : tuple of tuple of Stream
        Groups that decoded together.
    joined : tuple of (tuple of Stream, Stream)
        Groups that decoded together, and the prompt that came in between.
    """

    alone: tuple[Stream, ...]
    together: tuple[tuple[Stream, ...], ...]
    joined: tuple[tuple[tuple[Stream, ...], Stream], ...]


def overhead_s(probes: Probes) -> float | None:
    """Seconds of a first token that are no batch: network, tokenizer, queue, HTTP; None where it cannot be told.

    The batch of a prompt of one token is that of a decode without context: what the first token takes longer than the
    mean gap between two tokens of a lone request is overhead.
    """
    first = [stream.ttft_s for stream in probes.alone if stream.prompt_tokens == 1]
    lone = [group for group in probes.together if len(group) == 1]
    if not first or not lone:
        return None
    shortest = min(lone, key=lambda group: group[0].prompt_tokens)[0]
    if len(shortest.token_s) < 2:
        return None
    gap_s = (shortest.token_s[-1] - shortest.token_s[0]) / (len(shortest.token_s) - 1)
    return max(0.0, statistics.median(first) - gap_s)


def samples_of(probes: Probes) -> list[BatchSample]:
    """Batches that the probes tell; first tokens less the overhead, those left out that this leaves no time."""
    overhead = overhead_s(probes) or 0.0
    samples = [
        BatchSample(s.prompt_tokens, 0.0, prefill_pairs(s.prompt_tokens, 0), 1, 0, s.ttft_s - overhead)
        for s in probes.alone
    ]
    for group in probes.together:
        samples += decode_samples(group)
    for group, joiner in probes.joined:
        found = joined_sample(group, joiner)
        if found is not None:
            samples.append(found)
    return [sample for sample in samples if sample.usable]


def decode_samples(group: Sequence[Stream]) -> list[BatchSample]:
    """Batches in which all of the group decode: the mean of every few gaps of its first stream.

    The mean, since two tokens may come as one piece: no gap, and a gap of two batches.
    """
    begin_s = max(stream.token_s[0] for stream in group)
    end_s = min(stream.token_s[-1] for stream in group)
    times = [when for when in group[0].token_s if begin_s <= when <= end_s]
    samples = []
    for start in range(0, len(times) - GAPS_A_SAMPLE, GAPS_A_SAMPLE):
        part = times[start : start + GAPS_A_SAMPLE + 1]
        gap_s = (part[-1] - part[0]) / GAPS_A_SAMPLE
        context = sum(stream.context_at(part[len(part) // 2]) for stream in group)
        samples.append(BatchSample(len(group), float(context), 0.0, len(group), 0, gap_s))
    return samples


def joined_sample(group: Sequence[Stream], joiner: Stream) -> BatchSample | None:
    """The batch that held the whole prompt of `joiner` beside one token of each of the group.

    Its time is the longest gap of each stream around the joiner's first token, the median over the streams. None where
    one of the group had ended before.
    """
    first_s = joiner.token_s[0]
    gaps = []
    for stream in group:
        around = [
            later - earlier
            for earlier, later in pairwise(stream.token_s)
            if later >= joiner.sent_s and earlier <= first_s
        ]
        if not around or stream.token_s[-1] < first_s:
            return None
        gaps.append(max(around))
    context = sum(stream.context_at(first_s) for stream in group)
    tokens, prompt = len(group) + joiner.prompt_tokens, joiner.prompt_tokens
    pairs = prefill_pairs(prompt, 0)
    return BatchSample(tokens, float(context), pairs, len(group) + 1, 0, statistics.median(gaps))
