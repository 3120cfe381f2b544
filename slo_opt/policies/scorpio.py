"""Scorpio: least deadline first, hopeless requests rejected, decodes by credit."""

import math

from slo_opt.domain.engine import EngineModel
from slo_opt.policies.budget import tightest_tpot_s
from slo_opt.policies.edf import due
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue

_FULL = 1.0 - 1e-9  # thirds must add up to 1


class ScorpioPolicy:
    """Two guards: one for TTFT over the queue, one for TPOT over the batch. It drops requests.

    TTFT guard: the queue goes by first-token deadline, and a request that cannot make it any more is rejected. TPOT
    guard: a running request weighs ``τ_min / τ``, the tightest TPOT present over its own. It gains that much credit a
    batch and joins when its credit reaches 1, so that a request of twice the TPOT decodes in every second batch. A new
    request begins only if a step of all weights added up (the virtual batch size) lasts at most τ_min.

    Chosen here: batches last at most τ_min while anything decodes, and the TTFT of a request is that of its chunks in
    such batches; the step time comes from the engine model, contexts weighted as their requests; a request that lost
    its KV after its first token is never rejected; one that finds nothing under an SLO at work always begins. Output
    lengths are not used: the paper predicts them for its step times.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    guard : float
        Factor on τ_min in all limits; below 1 leaves a margin.

    References
    ----------
    Scorpio (Tang et al., arXiv 2505.23022: TTFT guard, TPOT guard).
    """

    name = "scorpio"

    def __init__(self, context: PolicyContext, guard: float = 1.0) -> None:
        self._default_s = tightest_tpot_s(context)
        self._guard = guard
        self._queue = WaitingQueue(due)
        self._credit: dict[str, float] = {}

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        tightest_s = min([job.tpot_s for job in step.decodes], default=self._default_s)
        self._join(step, tightest_s)
        limit_s = self._guard * tightest_s if step.decodes else math.inf
        self._reject_hopeless(step, snapshot, limit_s)
        guard = _VirtualBatch(step, snapshot.engine, self._guard)
        step.prefill(queue, limit_s, admit=guard.admit)
        if not step.batch.entries:  # those with credit lack memory, which those without it hold
            step.decode(step.decodes)
        step.serve_spare(queue, min(limit_s, step.until_due_s(limit_s)))
        return step.allocation()

    def _join(self, step: Step, tightest_s: float) -> None:
        """Credit to each decode; those that have enough decode."""
        old = self._credit
        self._credit = credit = {job.id: old.get(job.id, 0.0) + tightest_s / job.tpot_s for job in step.decodes}
        joining = [job for job in step.decodes if credit[job.id] >= _FULL]
        if len(joining) > min(step.batch.tokens_left, step.batch.seqs_left):
            joining.sort(key=lambda job: -credit[job.id])
        step.decode(joining)
        for job, _ in step.batch.entries:
            credit[job.id] -= 1.0

    def _reject_hopeless(self, step: Step, snapshot: EngineSnapshot, limit_s: float) -> None:
        queue, engine = self._queue, snapshot.engine
        while (job := queue.first()) is not None and not job.emitted_tokens:
            need_s = engine.zero_load_ttft_s(job.left_tokens, job.computed_tokens)
            if limit_s < math.inf:
                chunk = engine.max_tokens_within(limit_s) - len(step.batch.entries)
                need_s = max(need_s, job.left_tokens / chunk * limit_s if chunk > 0 else 0.0)
            if snapshot.now_s + need_s <= job.due_s:
                return
            step.rejected.append(queue.pop())


class _VirtualBatch:
    """The weights of the running requests, and whether another one may join them."""

    def __init__(self, step: Step, engine: EngineModel, guard: float) -> None:
        self._jobs = [*step.decodes, *step.prefills]
        self._engine = engine
        self._guard = guard

    def admit(self, job: Job) -> bool:
        """Whether a step keeps the tightest TPOT with this job too, which then counts as running."""
        jobs = [*self._jobs, job]
        tightest_s = min(other.tpot_s for other in jobs)
        size = sum(tightest_s / other.tpot_s for other in jobs)
        step_s = self._engine.batch_time_s(
            math.ceil(size),
            decode_context_tokens=sum(other.known_tokens * tightest_s / other.tpot_s for other in jobs),
            num_requests=math.ceil(size),
        )
        if self._jobs and step_s > self._guard * tightest_s:
            return False
        self._jobs = jobs
        return True
