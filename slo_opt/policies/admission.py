"""The DP at one moment: which of the requests that wait to serve on time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import engine_named
from slo_opt.domain.plan import MAX_PLAN_S, admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.domain.speculation import best_draft_lengths
from slo_opt.policies.interface import EngineSnapshot, Job
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.policies.pace import Pace
from slo_opt.solvers.dp.solver import plan

UNKNOWN_OUTPUT_TOKENS = 256  # assumed where a predictor knows nothing
MAX_DRAFT_TOKENS = 8
MIN_VALUE = 1e-9


def least_prefill_s(job: Job, engine: EngineModel) -> float:
    """Engine time, at least, before the next token of a job with tokens to prefill."""
    return engine.least_prefill_s(job.left_tokens, job.computed_tokens)


@dataclass(frozen=True, slots=True)
class Admission:
    """States the admission plan of a snapshot and has the DP solve it.

    Parameters
    ----------
    lengths : LengthPredictor
        For the KV blocks of candidates, and the departures of decodes.
    memory : {"peak", "growth"}
        See `slo_opt.domain.plan.admission_problem`.
    greedy : bool
        Instead of the DP, take candidates by deadline as long as the plan stays feasible: for ablations.
    decodes : bool
        Whether candidates decode here: see `PolicyContext`.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4.
    """

    lengths: LengthPredictor
    memory: Literal["peak", "growth"] = "growth"
    greedy: bool = False
    decodes: bool = True

    def remaining_tokens(self, job: Job) -> int:
        """Output tokens that a job is expected to produce here yet, at least 1."""
        if not self.decodes:
            return 1
        remaining = self.lengths.remaining_tokens(job)
        return max(1, UNKNOWN_OUTPUT_TOKENS - job.emitted_tokens) if remaining is None else remaining

    def accept(
        self,
        snapshot: EngineSnapshot,
        decodes: Sequence[Job],
        kept: Iterable[Job],
        free: Iterable[Job],
        drafts: dict[float, int] | None = None,
        pace: Pace | None = None,
    ) -> set[Job] | None:
        """The best set to serve.

        Parameters
        ----------
        snapshot : EngineSnapshot
            The moment and the engine.
        decodes : sequence of Job
            Running decodes; they stay.
        kept : iterable of Job
            Jobs with tokens to prefill that the plan must serve.
        free : iterable of Job
            Jobs with tokens to prefill that it may decline.
        drafts : dict of float to int or None
            Tokens a decode step, by TPOT in seconds.
        pace : Pace or None
            How fast decodes really are: they depart from the plan as early as that. None: at the pace of their SLO.

        Returns
        -------
        set of Job or None
            Of `free`; None if not even the kept ones can be served.
        """
        jobs = {job.id: job for job in free}
        candidates = [self._candidate(job, True) for job in kept]
        candidates += [self._candidate(job, False) for job in jobs.values()]
        problem = admission_problem(
            AdmissionSnapshot(snapshot.now_s, tuple(self._decoding(job, pace) for job in decodes), tuple(candidates)),
            snapshot.engine,
            memory=self.memory,
            draft_lengths=drafts,
            acceptance=snapshot.acceptance,
        )
        if self.greedy:
            chosen = {k for k in range(problem.num_candidates) if problem.mandatory[k]}
            if problem.check(chosen) is not None:
                return None
            for k in range(problem.num_candidates):
                if k not in chosen and problem.check(chosen | {k}) is None:
                    chosen.add(k)
            return {jobs[problem.ids[k]] for k in chosen if problem.ids[k] in jobs}
        accepted, value, *_ = plan(problem)
        if value < 0:
            return None
        return {jobs[problem.ids[k]] for k in np.flatnonzero(accepted) if problem.ids[k] in jobs}

    def _decoding(self, job: Job, pace: Pace | None) -> Decoding:
        tpot_s, remaining = min(job.tpot_s, MAX_PLAN_S), self.remaining_tokens(job)
        if pace is not None:
            remaining = math.ceil(remaining * pace.of(tpot_s) / tpot_s)
        return Decoding(job.id, tpot_s, job.computed_tokens, remaining)

    def _candidate(self, job: Job, mandatory: bool) -> Candidate:
        return Candidate(
            id=job.id,
            due_s=job.due_s,
            tpot_s=min(job.tpot_s, MAX_PLAN_S) if self.decodes else MAX_PLAN_S,  # it takes no engine time
            prefill_tokens=job.known_tokens - job.computed_tokens,
            past_tokens=job.computed_tokens,
            output_tokens=self.remaining_tokens(job),
            value=max(job.value, MIN_VALUE),
            mandatory=mandatory,
        )


@cache
def compile_planner() -> None:
    """Solve a plan of one candidate, so that the first decision of a run does not wait for the compiler."""
    engine = engine_named("opt-6.7b-a100")
    candidate = Candidate("r", due_s=1.0, tpot_s=0.1, prefill_tokens=100, past_tokens=0, output_tokens=10, value=1.0)
    plan(admission_problem(AdmissionSnapshot(0.0, (), (candidate,)), engine))


def draft_lengths(snapshot: EngineSnapshot, decodes: Sequence[Job]) -> dict[float, int]:
    """Tokens a decode step, by TPOT, that leave prefills the most time; empty where nothing is drafted."""
    if snapshot.acceptance <= 0 or not decodes:
        return {}
    counts: dict[float, int] = {}
    for job in decodes:
        counts[job.tpot_s] = counts.get(job.tpot_s, 0) + 1
    tiers = sorted(counts)
    lengths = best_draft_lengths(
        snapshot.engine, tiers, [counts[tier] for tier in tiers], snapshot.acceptance, MAX_DRAFT_TOKENS
    )
    return dict(zip(tiers, lengths, strict=True))
