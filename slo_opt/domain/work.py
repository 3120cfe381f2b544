"""The work that attaining each request takes, inside its outer time windows: the data of every relaxation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.windows import stage_windows

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """One prefill.

    Parameters
    ----------
    request : int
        Index into `Instance.requests`.
    release_s, due_s : float
        Outer window: no token before, the last one by.
    tokens : int
        Prompt tokens.
    pairs : float
        Query-key pairs of the whole prompt; chunking does not change the sum.
    cached_tokens : int
        Context held before.
    """

    request: int
    release_s: float
    due_s: float
    tokens: int
    pairs: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """One decode phase: `steps` batches, each of which yields one token.

    Parameters
    ----------
    request : int
        Index into `Instance.requests`.
    prefill : int or None
        Index of the prefill that precedes it, None where it continues another decode.
    release_s : float
        Before this time no step can start.
    base_s, tpot_s : float
        Step ``k`` (from 1) is due by ``base_s + k * tpot_s``.
    last_due_s : float
        When the last step is due.
    each_token : bool
        False if only the last step is due (score rule ``mean-tpot``).
    steps : int
        Decode steps (>= 1).
    context_tokens : int
        KV context of the first step; step ``k`` has ``k - 1`` more.
    least_step_s : float
        Least time from one token to the next, less the overlap of batches that `evaluate` forgives.
    """

    request: int
    prefill: int | None
    release_s: float
    base_s: float
    tpot_s: float
    last_due_s: float
    each_token: bool
    steps: int
    context_tokens: int
    least_step_s: float

    def steps_due(self, times_s: FloatArray) -> FloatArray:
        """Steps that must be complete at each time if the request is attained."""
        if not self.each_token:
            return np.where(times_s >= self.last_due_s, float(self.steps), 0.0)
        due = np.floor((times_s - self.base_s) / self.tpot_s)
        return np.where(times_s >= self.last_due_s, self.steps, np.clip(due, 0, self.steps)).astype(np.float64)

    def steps_possible(self, times_s: FloatArray) -> FloatArray:
        """Most steps, the part done of the one at work included, that any schedule can have done at each time."""
        possible = np.clip((times_s - self.release_s) / self.least_step_s, 0, self.steps)
        return np.maximum(possible, self.steps_due(times_s))

    def context_of(self, steps: FloatArray) -> FloatArray:
        """Context tokens attended to over the first `steps` steps together, the part of a step counted in part."""
        whole = np.floor(steps)
        total = self.context_tokens * steps + whole * (whole - 1) / 2 + (steps - whole) * whole
        return np.asarray(total, dtype=np.float64)


def attainable_work(instance: Instance) -> tuple[list[PrefillWork], list[DecodeWork]]:
    """Work of every request that counts and that is not ruled out on its own, in order of arrival.

    Windows are wider by what `evaluate` forgives, so that a schedule that it accepts never beats a bound: lateness, and
    for each batch before the release an overlap with the batch before it.
    """
    engine = instance.engine
    prefills: list[PrefillWork] = []
    decodes: list[DecodeWork] = []
    for i, request in enumerate(instance.requests):
        if instance.value_of(request) <= 0 or instance.unservable_reason(request) is not None:
            continue
        context = batches = 0
        for k, (stage, window) in enumerate(zip(request.stages, stage_windows(instance, request), strict=True)):
            prefill: int | None = None
            slack_s = 2 * (k + 1) * TIME_TOLERANCE_S
            release_s, first_due_s = window.release_s - slack_s, window.first_due_s + slack_s
            release_s -= batches * TIME_TOLERANCE_S
            base_s, steps = first_due_s - window.tpot_s, stage.output_tokens
            if stage.prompt_tokens:
                pairs = prefill_pairs(stage.prompt_tokens, stage.cached_tokens)
                prefills.append(PrefillWork(i, release_s, first_due_s, stage.prompt_tokens, pairs, stage.cached_tokens))
                prefill = len(prefills) - 1
                context = stage.cached_tokens + stage.prompt_tokens
                chunks = -(-stage.prompt_tokens // engine.max_num_batched_tokens)
                least_s = engine.least_prefill_s(stage.prompt_tokens, stage.cached_tokens) - chunks * TIME_TOLERANCE_S
                release_s += max(0.0, least_s)
                batches += chunks
                base_s = first_due_s
                steps -= 1
            first_context = context if stage.prompt_tokens else context - 1
            step_batches = -(-(first_context + 1) // engine.max_num_batched_tokens)  # of a step that re-prefills
            least_step_s = engine.least_step_s(first_context) - step_batches * TIME_TOLERANCE_S
            batches += steps * step_batches
            if steps:
                decodes.append(
                    DecodeWork(
                        request=i,
                        prefill=prefill,
                        release_s=release_s,
                        base_s=base_s,
                        tpot_s=window.tpot_s,
                        last_due_s=window.last_due_s + slack_s,
                        each_token=window.each_token,
                        steps=steps,
                        context_tokens=first_context,
                        least_step_s=max(1e-12, least_step_s),
                    )
                )
            context += stage.output_tokens
    return prefills, decodes
