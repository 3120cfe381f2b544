"""The DP for admission plans, rolled over the arrivals of a trace with known lengths, and turned into batches."""

import time
from collections.abc import Generator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.domain.plan import MAX_PLAN_S, admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.solvers.interface import ScheduleResult, SolverConfig, Termination
from slo_opt.solvers.offline.assemble import assign, checked_result, replay_reserve
from slo_opt.solvers.offline.lane import Lane
from slo_opt.solvers.offline.play import batch_time_s, new_log, play
from slo_opt.solvers.offline.state import COMPUTED, DECODING, DUE, EMITTED, KNOWN, NEXT, QUEUED, STAGE
from slo_opt.solvers.offline.warm import tiny_instance

REPLAN_S = 0.1  # declined requests are asked for again after this long, as in SLOs-Serve


class _Roll:
    """One replica played forward in time; the DP decides who stays in its queue."""

    def __init__(self, instance: Instance, lane: Lane) -> None:
        self.engine = instance.engine
        self.lane = lane
        self.declined: list[int] = []
        self.given_up: list[int] = []
        self.plans = 0
        self._no_log = new_log()
        lane.plan.accept[:] = lane.problem.value > 0
        lane.state.sizes[:] = 0
        lane.state.now_s[0] = 0.0
        lane.batch.sizes[:] = 0

    def run_until_plan(self) -> bool:
        """Play to the next moment that calls for a plan; False at the end."""
        lane = self.lane
        now_s, arrivals = float(lane.state.now_s[0]), int(lane.state.sizes[NEXT])
        until_s = now_s + REPLAN_S if self.declined else np.inf
        fixed = (lane.problem, lane.plan, lane.state, lane.batch, lane.checkpoints, self._no_log)
        _, end_s = play(*fixed, -1, False, np.inf, np.inf, until_s, arrivals)
        return bool(end_s < np.inf)

    def _hopeless(self, q: int) -> bool:
        p, counts = self.lane.problem, self.lane.state.counts[q]
        left, past = int(counts[KNOWN] - counts[COMPUTED]), int(counts[COMPUTED])
        least_s = batch_time_s(p, left, 0, left * (past + (left + 1) / 2), 1)
        return bool(self.lane.state.now_s[0] + least_s > self.lane.state.times[q, DUE])

    def plan(self) -> None:
        """Ask the DP for the best set of queued and declined requests; the queue becomes that set."""
        from slo_opt.solvers.dp.solver import plan

        state = self.lane.state
        queue = state.lists[QUEUED, : state.sizes[QUEUED]].tolist()
        self.given_up += [q for q in self.declined if self._hopeless(q)]
        self.declined = [q for q in self.declined if not self._hopeless(q)]
        candidates = queue + self.declined
        if not candidates:
            return
        problem = admission_problem(self._snapshot(candidates), self.engine, memory="growth")
        accepted, *_ = plan(problem)
        self.plans += 1
        chosen = {int(problem.ids[j]) for j in np.flatnonzero(accepted)}
        kept = sorted(chosen, key=lambda q: (state.times[q, DUE], q))
        state.lists[QUEUED, : len(kept)] = kept
        state.sizes[QUEUED] = len(kept)
        self.declined = [q for q in candidates if q not in chosen]

    def _snapshot(self, candidates: list[int]) -> AdmissionSnapshot:
        p, state = self.lane.problem, self.lane.state
        decoding = []
        for q in state.lists[DECODING, : state.sizes[DECODING]].tolist():
            stage = state.counts[q, STAGE]
            left = int(p.output_tokens[stage] - state.counts[q, EMITTED] + p.tail_tokens[stage])
            tpot_s = min(float(p.tpot_s[stage]), MAX_PLAN_S)
            decoding.append(Decoding(str(q), tpot_s, int(state.counts[q, COMPUTED]), left))
        return AdmissionSnapshot(float(state.now_s[0]), tuple(decoding), tuple(self._candidate(q) for q in candidates))

    def _candidate(self, q: int) -> Candidate:
        p, counts = self.lane.problem, self.lane.state.counts[q]
        stage, computed = int(counts[STAGE]), int(counts[COMPUTED])
        return Candidate(
            id=str(q),
            due_s=float(self.lane.state.times[q, DUE]),
            tpot_s=min(float(p.tpot_s[stage]), MAX_PLAN_S),
            prefill_tokens=int(counts[KNOWN]) - computed,
            past_tokens=computed,
            output_tokens=int(p.output_tokens[stage] + p.tail_tokens[stage]),
            value=float(p.value[q]),
            mandatory=stage > p.first_stage[q] or computed > p.cached_tokens[stage],
        )

    def attained(self) -> NDArray[np.bool_]:
        """Requests that arrived, were kept and are not late so far."""
        accept = self.lane.plan.accept.copy()
        accept[self.lane.state.sizes[NEXT] :] = False
        accept[self.lane.batch.lost[: self.lane.batch.sizes[1]]] = False
        accept[self.declined + self.given_up] = False
        return accept


def roll(instance: Instance, lane: Lane, end_s: float = np.inf) -> Generator[float, None, None]:
    """Roll the DP over the arrivals of one replica until a moment of `time.perf_counter`; yields the share done.

    However it ends, the lane then starts from what was planned up to then.
    """
    rolling = _Roll(instance, lane)
    last_s = max(float(lane.problem.arrival_s[-1]), 1e-9)
    try:
        while rolling.run_until_plan() and time.perf_counter() < end_s:
            rolling.plan()
            if rolling.plans % 32 == 0:
                yield min(1.0, float(lane.state.now_s[0]) / last_s)
    finally:
        lane.start_from(rolling.attained())


class RollingDpSolver:
    """At each arrival, and every 0.1 s while somebody is declined, the DP chooses whom to serve.

    Running decodes stay, started prefills are mandatory, lengths are known, arrivals are not. What it served in time is
    then played once more as the plan from the start.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4.
    """

    name = "dp"

    def prepare(self) -> None:
        """Compile, once a machine; the time limit of `solve` starts after it."""
        self.solve(tiny_instance(), SolverConfig())

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Roll through the trace; a time limit or Ctrl-C ends it with what was planned up to then."""
        began_s = time.perf_counter()
        end_s = np.inf if config.time_limit_s is None else began_s + replay_reserve(instance, config.time_limit_s)
        lanes: list[Lane] = []
        termination = Termination.OTHER_LIMIT
        shares = [own for own in assign(instance) if own]
        try:
            for r, own in enumerate(shares):
                lanes.append(Lane(instance, own, config.seed))
                with closing(roll(instance, lanes[-1], end_s)) as rolling:
                    for share in rolling:
                        if config.progress is not None:
                            config.progress("rolling DP", (r + share) / len(shares))
            if time.perf_counter() >= end_s:
                termination = Termination.TIME_LIMIT
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return checked_result(instance, lanes, termination, began_s, {})
