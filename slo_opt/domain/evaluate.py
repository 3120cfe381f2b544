"""The independent checker: replays a schedule on the engine model and scores it.

It shares no code with any solver, nor with the simulator. A result that has not passed here is never shown.
"""

import math
from collections import Counter
from dataclasses import dataclass

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.fleet import Fleet
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.schedule import Batch, Move, Schedule
from slo_opt.domain.token_clock import Scores, TokenClock, scores_of


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that the schedule breaks.

    Parameters
    ----------
    rule : str
        Short name of the rule.
    batch : int
        Index of the batch; of the first one after it, where the rule is about a move of KV.
    request : int or None
        Index of the request, where it is about one.
    detail : str
        The figures.
    """

    rule: str
    batch: int
    request: int | None
    detail: str

    def __str__(self) -> str:
        about = "" if self.request is None else f", request {self.request}"
        return f"batch {self.batch}{about}: {self.rule}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Evaluation(Scores):
    """Outcome of a replay: its scores, and whether the schedule is legal.

    Parameters
    ----------
    attained, finished, counted, value, stages
        See `Scores`.
    violations : tuple of Violation
        Empty for a legal schedule.
    busy_s : float
        Engine time spent in batches, over all replicas.
    peak_kv_blocks : int
        Most blocks held at once on one replica.
    num_tokens : int
        Scheduled tokens.
    """

    violations: tuple[Violation, ...]
    busy_s: float
    peak_kv_blocks: int
    num_tokens: int

    @property
    def legal(self) -> bool:
        """Whether the schedule breaks no rule."""
        return not self.violations


class _Progress(TokenClock):
    """One request under replay: its token clock, and its KV cache."""

    def __init__(self, instance: Instance, index: int, cached_tokens: int) -> None:
        self.replica = -1
        self.known = self.computed = 0  # tokens of context that exist, and of those the ones in the KV cache
        self.busy_until_s = -math.inf  # end of the latest batch that it was in
        self.moving: Move | None = None
        super().__init__(instance, index)
        self.computed += cached_tokens

    def _open(self, release_s: float) -> None:
        super()._open(release_s)
        stage = self.stages[self.stage]
        if stage.prompt_tokens:
            self.ready_s = release_s  # a continued decode goes on, whenever its last token is delivered
            self.computed = stage.cached_tokens
            self.known = stage.cached_tokens + stage.prompt_tokens
            self.replica = -1

    @property
    def decoding(self) -> bool:
        """Whether the next token is a decode step and not a prefill chunk."""
        started = self.emitted > 0 or self.stages[self.stage].prompt_tokens == 0
        return started and self.known - self.computed == 1

    def emit(self, now_s: float) -> None:
        """One output token at `now_s`."""
        self.known += 1
        super().emit(now_s)

    def lose(self) -> None:
        """Forget the KV cache: the whole context is prefilled again, on any replica."""
        self.computed = 0
        self.replica = -1


_LEAVES, _ARRIVES, _STOPS = range(3)  # in this order at one moment


class _Replay:
    """State of the replicas while the batches pass by."""

    def __init__(self, instance: Instance, schedule: Schedule, fleet: Fleet) -> None:
        self.instance = instance
        self.cached = schedule.cached
        self.fleet = fleet
        self.engines = [replica.engine for replica in fleet.replicas]
        self.progress: dict[int, _Progress] = {}
        self.held: list[dict[int, int]] = [{} for _ in self.engines]
        self.held_sum = [0] * len(self.engines)
        self.free_at_s = [-math.inf] * len(self.engines)
        self.latest_start_s = -math.inf
        self.violations: list[Violation] = []
        self.busy_s = 0.0
        self.peak_kv_blocks = 0
        self.num_tokens = 0
        self._moves = schedule.moves
        # What happens to KV between batches, the latest first: (time, kind, index of the move or of the replica).
        self._steps = [(move.start_s, _LEAVES, k) for k, move in enumerate(schedule.moves)]
        self._steps += [(move.end_s, _ARRIVES, k) for k, move in enumerate(schedule.moves) if move.end_s is not None]
        self._steps += [
            (until_s, _STOPS, k)
            for k, replica in enumerate(fleet.replicas)
            for _, until_s in replica.up_s
            if until_s < math.inf
        ]
        self._steps.sort(reverse=True)

    def violate(self, rule: str, b: int, request: int | None, detail: str) -> None:
        self.violations.append(Violation(rule, b, request, detail))

    def advance(self, b: int, now_s: float) -> None:
        """Let KV move, arrive and get lost up to a moment, before batch `b`."""
        while self._steps and self._steps[-1][0] <= now_s:
            time_s, kind, number = self._steps.pop()
            if kind == _LEAVES:
                self._leave(b, self._moves[number])
            elif kind == _ARRIVES:
                self._arrive(self._moves[number])
            else:
                for index in self.held[number]:
                    detail = f"its KV is on replica {number}, which is down from {time_s} s on"
                    self.violate("kv-outlives-replica", b, index, detail)

    def _leave(self, b: int, move: Move) -> None:
        """KV is lost, or its transfer begins."""
        index, replicas = move.request, range(len(self.engines))
        if move.source not in replicas or (move.target is not None and move.target not in replicas):
            detail = f"moves from replica {move.source} to {move.target}; there are {len(self.engines)}"
            self.violate("unknown-replica", b, index, detail)
            return
        state = self.progress.get(index)
        if state is None or state.moving is not None or index not in self.held[move.source]:
            self.violate("moved-not-held", b, index, f"it holds no KV on replica {move.source}")
            return
        if move.start_s < state.busy_until_s - TIME_TOLERANCE_S:
            detail = f"moves at {move.start_s} s, in a batch until {state.busy_until_s} s"
            self.violate("moved-in-batch", b, index, detail)
        if move.end_s is None:
            self._release(move.source, index)
            state.lose()
            return
        least_s = self.fleet.transfer.seconds(state.computed)
        if not move.end_s - move.start_s >= least_s - TIME_TOLERANCE_S:
            detail = f"{state.computed} tokens in {move.end_s - move.start_s} s; they take {least_s} s"
            self.violate("transfer-time", b, index, detail)
        state.moving = move

    def _arrive(self, move: Move) -> None:
        """KV is at its new replica, where it takes blocks when the request begins."""
        state = self.progress.get(move.request)
        if state is None or state.moving is not move:
            return  # refused when it left
        assert move.target is not None
        self._release(move.source, move.request)
        state.replica = move.target
        state.moving = None

    def _cached(self, b: int, index: int) -> int:
        """Tokens of the first prompt that the prefix cache held, if its blocks can have been there."""
        request, tokens = self.instance.requests[index], self.cached.get(index, 0)
        prefix = request.prefix
        most = 0 if prefix is None else prefix.block_tokens * len(prefix.blocks)
        most = min(most, request.stages[0].prompt_tokens - 1)
        if not 0 <= tokens <= most:
            self.violate("cached-tokens", b, index, f"{tokens} tokens from the prefix cache; at most {most} can be")
            return 0
        return tokens

    def _hold(self, replica: int, index: int, blocks: int) -> None:
        self.held_sum[replica] += blocks - self.held[replica].get(index, 0)
        self.held[replica][index] = blocks

    def _release(self, replica: int, index: int) -> None:
        self.held_sum[replica] -= self.held[replica].pop(index, 0)

    def _preempt(self, b: int, replica: int, index: int) -> None:
        state = self.progress.get(index)
        if state is None or state.done or state.moving is not None or index not in self.held[replica]:
            self.violate("preempted-not-running", b, index, f"it holds no KV on replica {replica}")
            return
        self._release(replica, index)
        state.lose()

    def run(self, b: int, batch: Batch) -> None:
        """Replay one batch."""
        replica, start_s = batch.replica, batch.start_s
        self.advance(b, start_s)
        if not 0 <= replica < len(self.engines):
            self.violate("unknown-replica", b, None, f"replica {replica} of {len(self.engines)}")
            return
        engine = self.engines[replica]
        if not math.isfinite(start_s) or start_s < self.free_at_s[replica] - TIME_TOLERANCE_S:
            self.violate("overlap", b, None, f"starts at {start_s} s, replica busy until {self.free_at_s[replica]} s")
        if start_s < self.latest_start_s:
            self.violate("unordered", b, None, f"starts at {start_s} s, after a batch that starts later")
        self.latest_start_s = max(self.latest_start_s, start_s)
        begins_s = max(start_s, self.free_at_s[replica])  # what is forgiven at a start must not add up over batches
        for index in batch.preempted:
            self._preempt(b, replica, index)
        if not batch.requests:
            self.violate("empty-batch", b, None, "a batch schedules no request")
        for index, times in Counter(batch.requests).items():
            if times > 1:
                self.violate("repeated-request", b, index, f"appears {times} times in one batch")
        entered: list[_Progress] = []
        emitting: list[tuple[_Progress, int, int]] = []
        total = context = draft_steps = 0
        pairs = 0.0
        for position, (index, tokens) in enumerate(zip(batch.requests, batch.tokens, strict=True)):
            if not 0 <= index < len(self.instance.requests):
                self.violate("unknown-request", b, index, f"the instance has {len(self.instance.requests)} requests")
                continue
            state = self.progress.get(index)
            if state is None:
                state = self.progress[index] = _Progress(self.instance, index, self._cached(b, index))
            total += tokens
            begins_s = max(begins_s, state.ready_s)
            entered.append(state)
            emits = self._entry(b, batch, position, index, tokens, state)
            if emits is None:
                continue
            if state.known + emits > engine.max_model_len:
                detail = f"{state.known + emits} tokens of context; the engine takes {engine.max_model_len}"
                self.violate("model-length", b, index, detail)
            if state.decoding:
                context += state.computed
                draft_steps = max(draft_steps, tokens - 1)
                state.computed += emits
            else:
                pairs += prefill_pairs(tokens, state.computed)
                state.computed += tokens
            if emits:
                emitting.append((state, index, emits))
            state.replica = replica
            self._hold(replica, index, engine.kv_blocks_for(state.computed))
        if total > engine.max_num_batched_tokens:
            self.violate("token-budget", b, None, f"{total} tokens; the engine takes {engine.max_num_batched_tokens}")
        if len(batch.requests) > engine.max_num_seqs:
            self.violate("sequence-limit", b, None, f"{len(batch.requests)} requests; limit {engine.max_num_seqs}")
        if self.held_sum[replica] > engine.kv_blocks:
            self.violate("kv-capacity", b, None, f"{self.held_sum[replica]} blocks held of {engine.kv_blocks}")
        self.peak_kv_blocks = max(self.peak_kv_blocks, self.held_sum[replica])
        duration_s = engine.batch_time_s(
            total,
            decode_context_tokens=context,
            prefill_pairs=pairs,
            num_requests=len(batch.requests),
            draft_steps=draft_steps,
        )
        if batch.duration_s is not None:
            duration_s = batch.duration_s
        self.num_tokens += total
        self.busy_s += duration_s
        self.free_at_s[replica] = end_s = begins_s + duration_s
        up = self.fleet.replicas[replica].is_up(begins_s + TIME_TOLERANCE_S, end_s - TIME_TOLERANCE_S)
        if math.isfinite(end_s) and not up:
            self.violate("replica-down", b, None, f"replica {replica} is not up from {begins_s} s to {end_s} s")
        shown_s = end_s
        if batch.delivered_s is not None:
            if not batch.delivered_s >= end_s - TIME_TOLERANCE_S:
                detail = f"its tokens reach the client at {batch.delivered_s} s, it ends at {end_s} s"
                self.violate("delivered-early", b, None, detail)
            shown_s = max(end_s, batch.delivered_s)
        for state in entered:
            state.busy_until_s = end_s
        for state, index, emits in emitting:
            for _ in range(emits):
                stage = state.stage
                state.emit(shown_s)
                if state.done or (state.stage != stage and state.stages[state.stage].prompt_tokens):
                    self._release(replica, index)

    def _entry(self, b: int, batch: Batch, position: int, index: int, tokens: int, state: _Progress) -> int | None:
        """Check one entry; output tokens it yields, None if it is illegal."""
        if state.done:
            self.violate("already-finished", b, index, "all its tokens were produced before")
            return None
        if tokens < 1:
            self.violate("no-tokens", b, index, f"{tokens} tokens scheduled")
            return None
        if batch.start_s < state.ready_s - TIME_TOLERANCE_S:
            self.violate("before-release", b, index, f"starts at {batch.start_s} s, released at {state.ready_s} s")
        if state.moving is not None:
            self.violate(
                "in-transfer", b, index, f"its KV reaches replica {state.moving.target} at {state.moving.end_s} s"
            )
        if state.replica not in (-1, batch.replica):
            self.violate("moved-replica", b, index, f"its KV is on replica {state.replica}")
        left = state.known - state.computed
        if not state.decoding:
            if tokens > left:
                self.violate("too-many-tokens", b, index, f"{tokens} tokens of prefill, {left} left")
                return None
            return int(tokens == left)
        emits = 1 if batch.emitted is None else batch.emitted[position]
        speculated = batch.emitted is not None
        if tokens != 1 and not speculated:
            self.violate("too-many-tokens", b, index, f"{tokens} tokens for a decode that is not speculated")
            return None
        # A speculated step may run past a phase boundary: thinking and response are one decode.
        if not 1 <= emits <= min(tokens, self._decode_left(state)):
            self.violate("too-many-tokens", b, index, f"{emits} tokens emitted from {tokens} scheduled")
            return None
        return emits

    @staticmethod
    def _decode_left(state: _Progress) -> int:
        """Output tokens left before the request ends or its next round is released."""
        left = state.stages[state.stage].output_tokens - state.emitted
        for stage in state.stages[state.stage + 1 :]:
            if stage.prompt_tokens:
                break
            left += stage.output_tokens
        return left


def evaluate(instance: Instance, schedule: Schedule, fleet: Fleet | None = None) -> Evaluation:
    """Replay a schedule on the engine model and score it.

    Parameters
    ----------
    instance : Instance
        Requests, SLOs, engine and score rule.
    schedule : Schedule
        Batches on each replica, and KV that moves between them; times in seconds from the start of the trace.
    fleet : Fleet or None
        Replicas with their engines, and how long KV takes between them. None: the equal replicas of the instance.

    Returns
    -------
    Evaluation
        Attainment, value and every violation. A batch occupies its replica for exactly its measured time, or else the
        engine model's; tokens appear at its end, or when they are delivered. KV blocks are held from the first chunk to
        the end of the batch that completes the request or its round, and are counted after the batch's own tokens are
        stored; KV that is transferred is held by its source until it has arrived. A request runs where its KV is.
    """
    replay = _Replay(instance, schedule, fleet or Fleet.of(instance))
    for b, batch in enumerate(schedule):
        replay.run(b, batch)
    replay.advance(len(schedule), math.inf)
    found = scores_of(instance, replay.progress)
    return Evaluation(
        attained=found.attained,
        finished=found.finished,
        counted=found.counted,
        value=found.value,
        stages=found.stages,
        violations=tuple(replay.violations),
        busy_s=replay.busy_s,
        peak_kv_blocks=replay.peak_kv_blocks,
        num_tokens=replay.num_tokens,
    )
