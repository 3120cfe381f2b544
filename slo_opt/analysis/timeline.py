"""A schedule unrolled: what each batch held, how long it took, and when each output token came out.

For explanations and plots. It takes schedules that `evaluate` found legal; it does not score.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.domain.schedule import Schedule

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Timeline:
    """``B`` batches, ``E`` entries, ``K`` output tokens; batches in order of start.

    Parameters
    ----------
    start_s, end_s : (B,) float arrays
        When each batch runs.
    replica : (B,) int array
        Where.
    kv_blocks : (B,) int array
        Blocks held on that replica at the end of the batch, before anything is released.
    entry_batch, entry_request, entry_tokens : (E,) int arrays
        Scheduled tokens of a request in a batch.
    entry_decode : (E,) bool array
        Whether the entry is a decode step and not a prefill chunk.
    entry_context, entry_pairs : (E,) float arrays
        What it adds to the batch's decode context tokens and prefill pairs.
    entry_blocks : (E,) int array
        KV blocks the request holds after it.
    token_request, token_stage, token_number, token_batch : (K,) int arrays
        Output tokens, numbered from 1 in each stage; they come out at the end of their batch.
    """

    start_s: Floats
    end_s: Floats
    replica: Ints
    kv_blocks: Ints
    entry_batch: Ints
    entry_request: Ints
    entry_tokens: Ints
    entry_decode: Bools
    entry_context: Floats
    entry_pairs: Floats
    entry_blocks: Ints
    token_request: Ints
    token_stage: Ints
    token_number: Ints
    token_batch: Ints

    @property
    def token_s(self) -> Floats:
        """When each output token came out."""
        return self.end_s[self.token_batch]

    def tokens_per_batch(self, decode: bool) -> Ints:
        """Decode tokens, or prefill tokens, of each batch."""
        chosen = self.entry_decode if decode else ~self.entry_decode
        return np.bincount(
            self.entry_batch[chosen], weights=self.entry_tokens[chosen], minlength=len(self.start_s)
        ).astype(np.int64)

    def durations_s(self, engine: EngineModel) -> Floats:
        """Seconds that each batch takes on the engine."""
        size = len(self.start_s)

        def summed(values: Ints | Floats) -> Floats:
            return np.bincount(self.entry_batch, weights=values, minlength=size).astype(np.float64)

        tokens, requests = summed(self.entry_tokens), np.bincount(self.entry_batch, minlength=size)
        drafts = np.zeros(size)
        np.maximum.at(drafts, self.entry_batch, np.where(self.entry_decode, self.entry_tokens - 1, 0))
        roofline: Floats = np.max(
            [piece.per_token_s * tokens + piece.per_draft_step_s * drafts + piece.base_s for piece in engine.pieces],
            axis=0,
        )
        seconds: Floats = (
            roofline
            + engine.decode_context_s * summed(self.entry_context)
            + engine.prefill_pair_s * summed(self.entry_pairs)
            + engine.request_s * requests
            + engine.host_s
        )
        return seconds


class _Cursor:
    """Where a request stands: tokens of context that exist, tokens of it in the KV cache, tokens put out."""

    __slots__ = ("computed", "emitted", "known", "stage", "stages")

    def __init__(self, request: Request, cached_tokens: int) -> None:
        self.stages = request.stages
        self.stage = 0
        self._open()
        self.computed += cached_tokens

    def _open(self) -> None:
        stage = self.stages[self.stage]
        self.emitted = 0
        if stage.prompt_tokens:
            self.computed = stage.cached_tokens
            self.known = stage.cached_tokens + stage.prompt_tokens

    @property
    def decoding(self) -> bool:
        started = self.emitted > 0 or self.stages[self.stage].prompt_tokens == 0
        return started and self.known - self.computed == 1

    def emit(self) -> tuple[int, int, bool]:
        """One output token: its stage, its number, and whether its KV is released with it."""
        stage, self.emitted, self.known = self.stage, self.emitted + 1, self.known + 1
        number = self.emitted
        if number < self.stages[stage].output_tokens:
            return stage, number, False
        self.stage += 1
        if self.stage == len(self.stages):
            return stage, number, True
        self._open()
        return stage, number, self.stages[self.stage].prompt_tokens > 0


def restricted(schedule: Schedule, keep: Bools) -> Schedule:
    """The schedule with the entries of other requests taken out, and the batches that hold no other.

    Parameters
    ----------
    schedule : Schedule
        Any.
    keep : (N,) bool array
        Per request of the instance.
    """
    kept = keep[schedule.request]
    batch = np.repeat(np.arange(len(schedule)), np.diff(schedule.offset))[kept]
    used, counts = np.unique(batch, return_counts=True)
    position = {int(b): p for p, b in enumerate(used)}
    preempted: dict[int, tuple[int, ...]] = {}
    for b, requests in schedule.preempted.items():
        left = tuple(request for request in requests if keep[request])
        after = int(np.searchsorted(used, b))  # its own batch may be gone: the next one comes soon enough
        if left and after < len(used):
            at = position[int(used[after])]
            preempted[at] = (*preempted.get(at, ()), *left)
    return Schedule(
        start_s=schedule.start_s[used],
        replica=schedule.replica[used],
        offset=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        request=schedule.request[kept],
        tokens=schedule.tokens[kept],
        emitted=None if schedule.emitted is None else schedule.emitted[kept],
        preempted=preempted,
        admitted=tuple(request for request in schedule.admitted if keep[request]),
        cached=schedule.cached,
    )


def unroll(instance: Instance, schedule: Schedule) -> Timeline:
    """Unroll a legal schedule.

    Parameters
    ----------
    instance : Instance
        What the schedule is for.
    schedule : Schedule
        Without violations.
    """
    engine = instance.engine
    cursors: dict[int, _Cursor] = {}
    held: list[dict[int, int]] = [{} for _ in range(instance.num_replicas)]
    held_sum = [0] * instance.num_replicas
    entries: list[tuple[bool, int, float, int]] = []
    tokens: list[tuple[int, int, int, int]] = []
    kv_blocks: list[int] = []
    for b, batch in enumerate(schedule):
        on, replica = held[batch.replica], batch.replica
        for index in batch.preempted:
            held_sum[replica] -= on.pop(index, 0)
            cursors[index].computed = 0
        released: list[int] = []
        for position, (index, count) in enumerate(zip(batch.requests, batch.tokens, strict=True)):
            cursor = cursors.get(index)
            if cursor is None:
                cursor = cursors[index] = _Cursor(instance.requests[index], schedule.cached.get(index, 0))
            decoding, past = cursor.decoding, cursor.computed
            if decoding:
                emits = 1 if batch.emitted is None else batch.emitted[position]
                cursor.computed += emits
            else:
                cursor.computed += count
                emits = int(cursor.computed == cursor.known)
            blocks = engine.kv_blocks_for(cursor.computed)
            held_sum[replica] += blocks - on.get(index, 0)
            on[index] = blocks
            entries.append((decoding, past if decoding else 0, 0.0 if decoding else prefill_pairs(count, past), blocks))
            for _ in range(emits):
                stage, number, release = cursor.emit()
                tokens.append((index, stage, number, b))
                if release:
                    released.append(index)
        kv_blocks.append(held_sum[replica])
        for index in released:
            held_sum[replica] -= on.pop(index, 0)
    decode, context, pairs, blocks_after = zip(*entries, strict=True) if entries else ((), (), (), ())
    token = np.array(tokens, dtype=np.int64).reshape(-1, 4)
    timeline = Timeline(
        start_s=schedule.start_s,
        end_s=schedule.start_s,
        replica=schedule.replica,
        kv_blocks=np.array(kv_blocks, dtype=np.int64),
        entry_batch=np.repeat(np.arange(len(schedule)), np.diff(schedule.offset)),
        entry_request=schedule.request,
        entry_tokens=schedule.tokens,
        entry_decode=np.array(decode, dtype=np.bool_),
        entry_context=np.array(context, dtype=np.float64),
        entry_pairs=np.array(pairs, dtype=np.float64),
        entry_blocks=np.array(blocks_after, dtype=np.int64),
        token_request=token[:, 0],
        token_stage=token[:, 1],
        token_number=token[:, 2],
        token_batch=token[:, 3],
    )
    measured_s = schedule.duration_s
    return replace(
        timeline, end_s=timeline.start_s + (timeline.durations_s(engine) if measured_s is None else measured_s)
    )
