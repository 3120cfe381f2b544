"""Why a request was declined: its deadline, engine time beside the plan, or KV memory."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from slo_opt.analysis.room import Room, batch_due_s
from slo_opt.analysis.timeline import restricted, unroll
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.domain.windows import StageWindow, stage_windows


class Reason(StrEnum):
    """What stands in the way of a declined request.

    Attributes
    ----------
    DEADLINE
        Alone on an idle engine it would be late.
    CONTEXT
        It is longer than the engine's context.
    KV
        Its KV blocks do not fit: at all, or beside the requests served in its window.
    COMPUTE
        It needs more engine time in its window than the requests served there leave.
    PACKING
        Engine time and KV would suffice in sum, but not in the batches as the plan cuts them. Only a better plan can
        tell; the gap says how many such requests it may serve.
    """

    DEADLINE = "deadline"
    CONTEXT = "context"
    KV = "kv"
    COMPUTE = "compute"
    PACKING = "packing"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one request was declined.

    Parameters
    ----------
    request_id, slo : str
        The request and its class.
    reason : Reason
        What stands in the way.
    text : str
        The same with its figures.
    window_s : tuple of float
        Arrival, and the deadline that cannot be met: of the first token or of the last.
    needs_s, free_s : float or None
        Least engine time that the request takes in the window; engine time that the served requests leave there when
        each of them is put off as far as its own deadlines allow.
    needs_blocks, free_blocks : int or None
        KV blocks at its peak; blocks that the served requests leave at the fullest moment of its window.
    holders : tuple of (str, float)
        Served requests that hold most engine time in the window, in seconds.
    """

    request_id: str
    slo: str
    reason: Reason
    text: str
    window_s: tuple[float, float]
    needs_s: float | None = None
    free_s: float | None = None
    needs_blocks: int | None = None
    free_blocks: int | None = None
    holders: tuple[tuple[str, float], ...] = ()


def _alone(instance: Instance, request: Request) -> Evaluation:
    """The request by itself on an idle engine, every batch as soon as it can be."""
    single = instance.with_requests((request,))
    engine, now_s, context = instance.engine, request.arrival_s, 0
    batches: list[Batch] = []
    for stage in request.stages:
        steps = stage.output_tokens
        if stage.prompt_tokens:
            now_s, context, done = now_s + stage.pause_s, stage.cached_tokens, 0
            while done < stage.prompt_tokens:
                chunk = min(stage.prompt_tokens - done, engine.max_num_batched_tokens)
                batches.append(Batch(now_s, (0,), (chunk,)))
                pairs = chunk * (context + (chunk + 1) / 2)
                now_s += engine.batch_time_s(chunk, prefill_pairs=pairs, num_requests=1)
                done, context = done + chunk, context + chunk
            steps -= 1
        for _ in range(steps):
            batches.append(Batch(now_s, (0,), (1,)))
            now_s += engine.batch_time_s(1, decode_context_tokens=context, num_requests=1)
            context += 1
    return evaluate(single, Schedule.from_batches(batches))


class Explainer:
    """Explains the declined requests of one plan.

    Parameters
    ----------
    instance : Instance
        What was solved.
    schedule : Schedule
        The plan; it must be legal.
    """

    def __init__(self, instance: Instance, schedule: Schedule) -> None:
        self.instance = instance
        self.evaluation = evaluate(instance, schedule)
        timeline = unroll(instance, restricted(schedule, self.evaluation.attained))
        due_s = batch_due_s(instance, timeline)
        self._replicas = [Room(instance, timeline, due_s, r) for r in range(instance.num_replicas)]

    @property
    def declined(self) -> tuple[int, ...]:
        """Requests under an SLO that the plan does not attain."""
        missed = self.evaluation.counted & ~self.evaluation.attained
        return tuple(np.flatnonzero(missed).tolist())

    def explain(self, index: int) -> Explanation:
        """Why the request of that index was declined."""
        return self._impossible(index) or self._beside_the_plan(index)

    def _impossible(self, index: int) -> Explanation | None:
        instance, request = self.instance, self.instance.requests[index]
        windows = stage_windows(instance, request)
        slo = instance.slo_of(request).name
        span_s = (request.arrival_s, windows[-1].last_due_s)
        text = instance.unservable_reason(request)
        if text is not None:
            reason = (
                Reason.CONTEXT if "max_model_len" in text else Reason.KV if "KV blocks" in text else Reason.DEADLINE
            )
            return Explanation(request.id, slo, reason, f"no schedule can serve it: {text}", span_s)
        outcome = _alone(instance, request)
        if outcome.attained[0]:
            return None
        late = max(outcome.stages[0], key=lambda times: times.lateness_s)
        text = f"even alone on an idle engine it would be {late.lateness_s * 1e3:.1f} ms late"
        return Explanation(request.id, slo, Reason.DEADLINE, text, span_s)

    def _beside_the_plan(self, index: int) -> Explanation:
        instance, request = self.instance, self.instance.requests[index]
        engine, windows = instance.engine, stage_windows(instance, request)
        slo = instance.slo_of(request).name
        context, blocks = 0, 0
        for stage in request.stages:
            context = stage.cached_tokens + stage.prompt_tokens if stage.prompt_tokens else context
            context += stage.output_tokens
            blocks = max(blocks, engine.kv_blocks_for(context - 1))
        verdicts: list[Explanation] = []
        for replica in self._replicas:
            time = self._time_short(replica, request, windows, slo)
            last_s = windows[-1].last_due_s
            free_blocks = max(0, engine.kv_blocks - replica.peak_blocks(request.arrival_s, last_s))
            if time is not None:
                verdicts.append(time)
            elif blocks > free_blocks:
                text = (
                    f"it needs {blocks} KV blocks at its peak; {free_blocks} of {engine.kv_blocks} are free at the "
                    f"fullest moment between {request.arrival_s:.2f} and {last_s:.2f} s"
                )
                span_s = (request.arrival_s, last_s)
                holders = replica.holders(*span_s)
                verdicts.append(
                    Explanation(request.id, slo, Reason.KV, text, span_s, None, None, blocks, free_blocks, holders)
                )
            else:
                return self._packing(replica, request, windows, slo, blocks, free_blocks)
        # The replica that comes nearest to taking it.
        return min(verdicts, key=lambda verdict: (verdict.needs_s or 0.0) - (verdict.free_s or 0.0))

    def _needs(
        self, replica: Room, request: Request, windows: tuple[StageWindow, ...]
    ) -> list[tuple[str, float, float]]:
        """Deadlines in order, and the least engine time from arrival to each: first tokens and last tokens."""
        needs: list[tuple[str, float, float]] = []
        total_s, context = 0.0, 0
        for stage, window in zip(request.stages, windows, strict=True):
            steps = stage.output_tokens
            if stage.prompt_tokens:
                context, steps = stage.cached_tokens + stage.prompt_tokens, steps - 1
                total_s += replica.prefill_needs_s(
                    stage.prompt_tokens, stage.cached_tokens, window.release_s, window.first_due_s
                )
                needs.append(("first token", total_s, window.first_due_s))
            if steps:
                total_s += replica.decode_needs_s(steps, context, window.release_s, window.last_due_s)
                needs.append(("last token", total_s, window.last_due_s))
            context += stage.output_tokens
        return needs

    def _time_short(
        self, replica: Room, request: Request, windows: tuple[StageWindow, ...], slo: str
    ) -> Explanation | None:
        for what, needs_s, due_s in self._needs(replica, request, windows):
            span_s = (request.arrival_s, due_s)
            free_s = replica.free_s(*span_s)
            if needs_s > free_s:
                text = (
                    f"it needs at least {needs_s * 1e3:.1f} ms of engine time between {span_s[0]:.2f} and "
                    f"{due_s:.2f} s (its {what} is due then), of which the requests served leave {free_s * 1e3:.1f} ms"
                )
                holders = replica.holders(*span_s)
                return Explanation(request.id, slo, Reason.COMPUTE, text, span_s, needs_s, free_s, holders=holders)
        return None

    def _packing(
        self,
        replica: Room,
        request: Request,
        windows: tuple[StageWindow, ...],
        slo: str,
        blocks: int,
        free_blocks: int,
    ) -> Explanation:
        needs = self._needs(replica, request, windows)
        what, needs_s, due_s = min(needs, key=lambda need: replica.free_s(request.arrival_s, need[2]) - need[1])
        span_s = (request.arrival_s, due_s)
        free_s = replica.free_s(*span_s)
        text = (
            f"it needs at least {needs_s * 1e3:.1f} ms of engine time between {span_s[0]:.2f} and "
            f"{due_s:.2f} s (its {what} is due then); {free_s * 1e3:.1f} ms and {free_blocks} KV blocks are free, but "
            "not as the plan cuts its batches: only a better plan could serve it"
        )
        holders = replica.holders(*span_s)
        return Explanation(request.id, slo, Reason.PACKING, text, span_s, needs_s, free_s, blocks, free_blocks, holders)
