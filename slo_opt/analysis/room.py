"""Room beside a plan: engine time and KV blocks that the served requests leave in a window."""

import itertools
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from slo_opt.analysis.timeline import Timeline
from slo_opt.domain.instance import Instance
from slo_opt.domain.windows import StageWindow, stage_windows

_LEAST_S = 1e-3  # who holds less holds nobody up


class Room:
    """The served requests' batches on one replica, as planned and put off as far as their deadlines allow."""

    def __init__(self, instance: Instance, timeline: Timeline, due_s: NDArray[np.float64], replica: int) -> None:
        self.instance, self.timeline = instance, timeline
        self.batches = np.flatnonzero(timeline.replica == replica)
        self.start_s = timeline.start_s[self.batches]
        self.duration_s = timeline.end_s[self.batches] - self.start_s
        self.kv_blocks = timeline.kv_blocks[self.batches]
        self.num_tokens = timeline.tokens_per_batch(decode=False)[self.batches]
        self.num_tokens += timeline.tokens_per_batch(decode=True)[self.batches]
        latest_s = due_s[self.batches] - self.duration_s
        for b in range(len(latest_s) - 2, -1, -1):
            latest_s[b] = min(latest_s[b], latest_s[b + 1] - self.duration_s[b])
        self.latest_start_s = np.maximum(latest_s, self.start_s)
        self.passed_s = np.concatenate([[0.0], np.cumsum(self.duration_s)])

    def free_s(self, from_s: float, to_s: float) -> float:
        """Engine time left in a window: batches started before it stay, all later ones are put off."""
        first = int(np.searchsorted(self.start_s, from_s))
        running_s = 0.0
        if first:
            running_s = min(to_s, self.start_s[first - 1] + self.duration_s[first - 1]) - from_s
        last = int(np.searchsorted(self.latest_start_s, to_s))
        held_s = 0.0
        if last > first:
            end_s = self.latest_start_s[last - 1] + self.duration_s[last - 1]
            held_s = float(self.passed_s[last] - self.passed_s[first]) - max(0.0, end_s - to_s)
        return max(0.0, float(to_s - from_s - max(0.0, running_s) - held_s))

    def between(self, from_s: float, to_s: float) -> slice:
        """Batches that start in a window, as planned."""
        return slice(*np.searchsorted(self.start_s, [from_s, to_s]).tolist())

    def peak_blocks(self, from_s: float, to_s: float) -> int:
        """Most blocks that served requests hold in a window."""
        inside = self.kv_blocks[self.between(from_s, to_s)]
        return int(inside.max()) if len(inside) else 0

    def _cheapest_s(self, tokens: int, window: slice) -> float:
        """Least extra time of `tokens` tokens, added to the batches of a window or put into one of their own."""
        engine = self.instance.engine
        pieces = [(piece.per_token_s, piece.base_s) for piece in engine.pieces]

        def roofline(num_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
            times: NDArray[np.float64] = np.max([k * num_tokens + b for k, b in pieces], axis=0)
            return times

        crossings = {(b1 - b2) / (k2 - k1) for k1, b1 in pieces for k2, b2 in pieces if k2 > k1 and b1 > b2}
        marks = [0.0, *sorted(crossings), float(engine.max_num_batched_tokens)]
        present = np.append(self.num_tokens[window], 0).astype(np.float64)
        costs: list[tuple[float, float]] = []
        for low, high in itertools.pairwise(marks):
            at, room = np.maximum(present, low), high - np.maximum(present, low)
            used = room > 0
            slope = (roofline(at[used] + room[used]) - roofline(at[used])) / room[used]
            costs += zip(slope.tolist(), room[used].tolist(), strict=True)
        left, total_s = float(tokens), 0.0
        for slope_s, room_tokens in sorted(costs):
            taken = min(left, room_tokens)
            total_s += taken * slope_s
            left -= taken
            if left <= 0:
                break
        return total_s

    def prefill_needs_s(self, tokens: int, cached_tokens: int, from_s: float, to_s: float) -> float:
        """Least engine time of a prompt in a window."""
        engine = self.instance.engine
        window = self.between(from_s, to_s)
        pairs = tokens * (cached_tokens + (tokens + 1) / 2)
        alone_s = engine.zero_load_ttft_s(tokens, cached_tokens)
        if window.start == window.stop:
            return alone_s
        extra_s = self._cheapest_s(tokens, window) + engine.prefill_pair_s * pairs + engine.request_s
        return min(alone_s, extra_s)

    def decode_needs_s(self, steps: int, context_tokens: int, from_s: float, to_s: float) -> float:
        """Least engine time of decode steps in a window, each in another batch."""
        engine = self.instance.engine
        attention_s = engine.decode_context_s * (context_tokens + (steps - 1) / 2) + engine.request_s
        batches = self.between(from_s, to_s)
        token_s = min(piece.per_token_s for piece in engine.pieces)
        riding: int = min(steps, batches.stop - batches.start)
        own_s: float = engine.batch_time_s(1)
        return riding * token_s + (steps - riding) * own_s + steps * attention_s

    def holders(self, from_s: float, to_s: float, most: int = 3) -> tuple[tuple[str, float], ...]:
        """Served requests that take most engine time in a window, by their share of each batch's tokens."""
        timeline, window = self.timeline, self.between(from_s, to_s)
        running = max(0, window.start - 1)  # the batch at work when the window opens, if there is one
        if window.start and self.start_s[running] + self.duration_s[running] > from_s:
            window = slice(running, window.stop)
        chosen = np.isin(timeline.entry_batch, self.batches[window])
        batch, request = timeline.entry_batch[chosen], timeline.entry_request[chosen]
        position = np.searchsorted(self.batches, batch)
        share_s = timeline.entry_tokens[chosen] / self.num_tokens[position] * self.duration_s[position]
        total_s: Counter[int] = Counter()
        for index, seconds in zip(request.tolist(), share_s.tolist(), strict=True):
            total_s[index] += seconds
        return tuple(
            (self.instance.requests[i].id, seconds) for i, seconds in total_s.most_common(most) if seconds >= _LEAST_S
        )


def batch_due_s(instance: Instance, timeline: Timeline) -> NDArray[np.float64]:
    """Earliest deadline among the output tokens of each batch."""
    windows: dict[int, tuple[StageWindow, ...]] = {}
    due_s = np.full(len(timeline.start_s), np.inf)
    columns = (timeline.token_request, timeline.token_stage, timeline.token_number, timeline.token_batch)
    for index, stage, number, b in zip(*(column.tolist() for column in columns), strict=True):
        if index not in windows:
            windows[index] = stage_windows(instance, instance.requests[index])
        due_s[b] = min(due_s[b], windows[index][stage].due_s(number))
    return due_s
