"""Exhaustive search over tiny instances whose times are multiples of 10 ms, independent of evaluator and models.

Starts, durations and limits on one grid form a system of differences with integral data, so starts off the grid cannot
attain more. Idle time is enumerated tick by tick.
"""

import itertools
import random
from dataclasses import dataclass, replace
from functools import cache

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass

TICK_S = 0.01


def ticks(seconds: float) -> int:
    """Whole ticks in a limit, rounded down."""
    return int(seconds / TICK_S + 1e-6)


@dataclass(frozen=True)
class _State:
    """One request: stage, tokens in the cache, tokens out of the stage, release and clock of the stage, failed."""

    stage: int
    stored: int
    out: int
    release: int
    clock: float
    dead: bool


def best_value(instance: Instance) -> float:
    """Largest value that any schedule without preemption and speculation attains on one replica."""
    engine, rule = instance.engine, instance.score_rule
    stretch = 1.05 if rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
    requests = instance.requests

    def tpot(stage: Stage) -> float:
        return instance.slo_classes[stage.slo].tpot_ms / 10 * stretch

    def limit(stage: Stage) -> float:
        ttft_ms = instance.slo_classes[stage.slo].ttft_ms
        assert ttft_ms is not None
        return ttft_ms / 10

    def opened(i: int, stage: int, now: int, before: _State | None, clock: float) -> _State:
        """State of a request when its stage begins."""
        if stage == len(requests[i].stages):
            return _State(stage, 0, 0, 0, 0.0, False)
        this = requests[i].stages[stage]
        if this.prompt_tokens == 0:
            assert before is not None
            return _State(stage, before.stored, 0, before.release, clock, False)
        release = now + ticks(this.pause_s)
        return _State(stage, this.cached_tokens, 0, release, release + limit(this), False)

    def after_token(i: int, state: _State, end: int) -> _State:
        """One output token appears at `end`."""
        stage = requests[i].stages[state.stage]
        out = state.out + 1
        first = out == 1 and stage.prompt_tokens > 0
        last = out == stage.output_tokens
        nth = out - 1 if stage.prompt_tokens else out
        due = state.clock + nth * tpot(stage)
        clock = state.clock
        if first and rule is ScoreRule.FIRST_LATE_SHIFTS:
            due = state.release + limit(stage) * 1.05
            clock = max(clock, end)
        if first and rule is ScoreRule.MEAN_TPOT:
            clock = end
        judged = rule is not ScoreRule.MEAN_TPOT or first or last
        if judged and end > due + 1e-6:
            return replace(state, dead=True)
        moved = replace(state, out=out, clock=clock)
        if not last:
            return moved
        carried = end if rule is ScoreRule.MEAN_TPOT else clock + nth * tpot(stage)
        return opened(i, state.stage + 1, end, moved, carried)

    def options(i: int, state: _State, now: int) -> list[int]:
        if state.dead or state.stage == len(requests[i].stages) or state.release > now:
            return [0]
        stage = requests[i].stages[state.stage]
        if state.out == 0 and stage.prompt_tokens:
            left = stage.cached_tokens + stage.prompt_tokens - state.stored
            return list(range(left + 1))
        return [0, 1]

    def run(states: tuple[_State, ...], tokens: tuple[int, ...], now: int) -> tuple[int, tuple[_State, ...]] | None:
        total, context, pairs, count = sum(tokens), 0, 0.0, sum(t > 0 for t in tokens)
        if total > engine.max_num_batched_tokens or count > engine.max_num_seqs:
            return None
        blocks = 0
        emits, stored = [False] * len(states), [state.stored for state in states]
        for i, (state, new) in enumerate(zip(states, tokens, strict=True)):
            if state.dead or state.stage == len(requests[i].stages):
                if state.dead and state.stored:
                    blocks += -(-state.stored // engine.block_size_tokens)
                continue
            stage = requests[i].stages[state.stage]
            if new and (state.out or not stage.prompt_tokens):
                context += state.stored
                emits[i] = True
            elif new:
                pairs += sum(state.stored + j for j in range(1, new + 1))
                emits[i] = state.stored + new == stage.cached_tokens + stage.prompt_tokens
            stored[i] += new
            idle_start = stage.prompt_tokens > 0 and stored[i] == stage.cached_tokens
            blocks += 0 if idle_start else -(-stored[i] // engine.block_size_tokens)
        if blocks > engine.kv_blocks:
            return None
        roofline = max(piece.per_token_s * total + piece.base_s for piece in engine.pieces)
        seconds = roofline + engine.host_s + engine.request_s * count
        seconds += engine.decode_context_s * context + engine.prefill_pair_s * pairs
        end = now + round(seconds / TICK_S)
        assert abs(seconds / TICK_S - round(seconds / TICK_S)) < 1e-6
        after = [replace(state, stored=stored[i]) for i, state in enumerate(states)]
        return end, tuple(after_token(i, s, end) if emits[i] else s for i, s in enumerate(after))

    def latest(i: int, state: _State) -> int:
        """No token of the request can be on time after this tick."""
        total, pending = 0.0, requests[i].stages[state.stage :]
        for stage in pending:
            total += ticks(stage.pause_s) + (limit(stage) * stretch if stage.prompt_tokens else 0)
            total += stage.output_tokens * tpot(stage)
        return int(max(state.clock, state.release) + total) + 1

    @cache
    def search(now: int, states: tuple[_State, ...]) -> float:
        value = sum(
            instance.value_of(request)
            for request, state in zip(requests, states, strict=True)
            if not state.dead and state.stage == len(request.stages)
        )
        open_ones = [i for i, s in enumerate(states) if not s.dead and s.stage < len(requests[i].stages)]
        if not open_ones or now > max(latest(i, states[i]) for i in open_ones):
            return value
        best = max(value, search(now + 1, states))
        for tokens in itertools.product(*(options(i, state, now) for i, state in enumerate(states))):
            moved = run(states, tokens, now) if any(tokens) else None
            # A schedule that serves a request in vain is no better than one that never touches it.
            if moved and not any(new.dead and not old.dead for new, old in zip(moved[1], states, strict=True)):
                best = max(best, search(*moved))
        return best

    start = tuple(opened(i, 0, ticks(request.arrival_s), None, 0.0) for i, request in enumerate(requests))
    return search(0, start)


def tiny_instance(rng: random.Random, rule: ScoreRule) -> Instance:
    """Two or three requests of a few tokens, all times multiples of 10 ms."""

    def grid_s(low: int, high: int) -> float:
        return round(rng.randint(low, high) * TICK_S, 6)

    engine = EngineModel(
        name="tiny",
        source="made up",
        pieces=(RooflinePiece(grid_s(0, 1), grid_s(2, 5)), RooflinePiece(grid_s(1, 3), grid_s(0, 2))),
        decode_context_s=rng.choice([0.0, TICK_S]),
        prefill_pair_s=rng.choice([0.0, 0.0, TICK_S]),
        request_s=rng.choice([0.0, TICK_S]),
        host_s=rng.choice([0.0, TICK_S]),
        block_size_tokens=rng.choice([1, 2]),
        kv_blocks=rng.randint(3, 12),
        max_num_batched_tokens=rng.choice([2, 3, 100]),
        max_num_seqs=rng.choice([1, 2, 100]),
    )
    classes = {
        name: SloClass(
            name,
            tpot_ms=10.0 * rng.randint(3, 12),
            ttft_ms=10.0 * rng.randint(6, 25),
            weight=rng.choice([1.0, 1.0, 2.5]),
            best_effort=rng.random() < 0.05,
        )
        for name in "ab"
    }
    count = rng.choice([2, 2, 3])
    most = 4 if count == 2 else 2
    arrivals = sorted(grid_s(0, 12) for _ in range(count))
    requests = []
    for i, arrival_s in enumerate(arrivals):
        stages = [Stage(rng.randint(1, most), rng.randint(1, 3), rng.choice("ab"), cached_tokens=rng.choice([0, 0, 1]))]
        if count == 2 and rng.random() < 0.4:
            continued = rng.random() < 0.5
            stages.append(
                Stage(0, rng.randint(1, 2), rng.choice("ab"))
                if continued
                else Stage(rng.randint(1, 2), rng.randint(1, 2), rng.choice("ab"), rng.choice([0, 2]), grid_s(0, 3))
            )
        requests.append(Request(f"r{i}", arrival_s, tuple(stages)))
    return Instance("tiny", tuple(requests), classes, engine, rule)
