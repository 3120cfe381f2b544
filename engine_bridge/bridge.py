"""Between an engine and the planner: keeps the jobs up to date, carries decisions out, measures, records.

It knows no engine's names: what it needs of one is `EnginePort`.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from slo_opt.domain.engine import EngineModel
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.books import Books, Delivery
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.decision_log import DecisionLog
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.metrics import BridgeMetrics
from slo_opt.engine_bridge.outcomes import Outcomes
from slo_opt.engine_bridge.planner import Planner, PlannerError, StepView
from slo_opt.engine_bridge.refusal import refusal_text
from slo_opt.engine_bridge.slo_fields import SloFieldError, request_slo
from slo_opt.engine_bridge.step_plan import Deviations, StepPlan
from slo_opt.engine_bridge.vllm_state import RequestState
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job, RoundEnd, Standing

if TYPE_CHECKING:
    from slo_opt.engine_bridge.step_log import StepLog

logger = logging.getLogger(__name__)

STUCK_S = 1.0  # without a token scheduled while somebody waits: the engine decides itself, and the books are checked
SHOW_EVERY = 16  # batches between two looks at the state of the engine, for the metrics
MAX_CUSHION = 0.2  # of the TTFT limit
FIRST_ACCEPTANCE = 0.7  # until some are seen
LEARN_ACCEPTANCE = 0.02  # weight of a batch in the share of drafts that are accepted
LOOKS_A_STEP = 4  # waiting requests whose prefix-cache hits are looked up anew
MAX_RETRY_S = 60
_OLDEST_ARRIVAL_S = 3600.0


class EnginePort(Protocol):
    """What the bridge asks of an engine."""

    def free_kv_blocks(self) -> int:
        """KV blocks free."""

    def cached_tokens(self, id: str) -> int:
        """Tokens of a waiting request that the prefix cache holds."""

    def next_tokens(self, id: str) -> int:
        """Tokens that a running request can take now, drafted ones included; 0 where it is about to end."""

    def refuse(self, id: str, reason: str) -> None:
        """Send a request away; its client is told the reason."""

    def states(self) -> Mapping[str, tuple[bool, RequestState]]:
        """Every request in the engine: whether it holds KV blocks, and where it stands."""


@dataclass(slots=True)
class _Batch:
    """A batch between its schedule and its results."""

    began_s: float
    sample: BatchSample | None
    predicted_s: float
    drafts: Mapping[str, int]


class Bridge:
    """The live scheduler without its engine.

    For each step: `next_plan`, then `scheduled` with what the engine really did, then, once the batch has run,
    `delivered`. Several batches may be in flight; results come in order.

    Parameters
    ----------
    config : BridgeConfig
        What the operator chose.
    port : EnginePort
        The engine.
    engine : EngineModel
        Its limits, and the batch times to begin with.
    live : LiveEngine
        Learns batch times.
    clock, wall_clock : callable
        Seconds: monotonic, and since 1970.
    prefix_caching : bool
        Whether waiting requests can find tokens in the KV cache.
    drafts : bool
        Whether the engine speculates.
    """

    def __init__(
        self,
        config: BridgeConfig,
        port: EnginePort,
        engine: EngineModel,
        live: LiveEngine,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        metrics: BridgeMetrics,
        decision_log: DecisionLog | None = None,
        step_log: "StepLog | None" = None,
        prefix_caching: bool = False,
        drafts: bool = False,
    ) -> None:
        self.books = Books(engine.block_size_tokens, config.thinking_end_token_id)
        self.roster = self.books.roster
        self.live = live
        self.metrics = metrics
        self._config = config
        self._port = port
        self._clock = clock
        self._wall_clock = wall_clock
        self._most_tokens = engine.kv_blocks * engine.block_size_tokens
        self._planner = Planner(config, live.plain, clock)
        self._outcomes = Outcomes(config, metrics, decision_log, clock, wall_clock)
        self._step_log = step_log
        self._prefix_caching = prefix_caching
        self._acceptance = FIRST_ACCEPTANCE if drafts else 0.0
        self._in_flight: deque[_Batch] = deque()
        self._ratio = 1.0
        self._followed = False
        self._latest_s = 0.0
        self._ready_s = -math.inf
        self._began_s = 0.0
        self._planned_s = 0.0
        self._looked = 0
        self._batches = 0
        self._told: set[str] = set()
        self._foreign: set[str] = set()
        self._busy_s = clock()

    # Requests come and go.

    def add(
        self, id: str, fields: Mapping[str, Any] | None, arrival_unix_s: float, prompt_tokens: int, max_tokens: int
    ) -> None:
        """A request has come; the engine has it in its queue already.

        Parameters
        ----------
        id : str
            Unique in the engine.
        fields : mapping or None
            Its extra arguments: the SLO fields among them.
        arrival_unix_s : float
            When the server got it.
        prompt_tokens, max_tokens : int
            Of its prompt; at most, of its output.
        """
        waited_s = min(max(self._wall_clock() - arrival_unix_s, 0.0), _OLDEST_ARRIVAL_S)
        arrival_s = self._clock() - waited_s
        try:
            slo = request_slo(fields, self._config)
        except SloFieldError as error:
            self._outcomes.malformed(id, arrival_s, prompt_tokens)
            self._port.refuse(id, f"slo-opt: malformed: {error}")
            return
        limit_s = slo.ttft_limit_s(self.live.plain, prompt_tokens) - self._config.headroom_ms / 1e3
        cushion_s = min(self._config.cushion_ms / 1e3, MAX_CUSHION * max(limit_s, 0.0))
        job = LiveJob(id, slo, arrival_s, limit_s, prompt_tokens, cushion_s)
        if not len(self.roster):
            self._busy_s = self._clock()
        self.books.add(job, max_tokens)
        if prompt_tokens > self._most_tokens:  # vLLM's own checks let no such prompt in
            self._outcomes.refused(job, "too_long")
            self._port.refuse(id, refusal_text("too_long", MAX_RETRY_S))
            return
        if self._prefix_caching:
            self._look(job)
        if slo.best_effort:
            self._outcomes.best_effort(job, "no_slo")
        else:
            self._planner.expect_tpot(min(slo.tpot_s, slo.thinking_tpot_s or slo.tpot_s))
        self._planner.wake()

    def add_foreign(self, id: str) -> None:
        """A request that cannot be planned has come: while it is there, every step is the engine's own."""
        self._foreign.add(id)

    def failed(self, where: str, error: Exception) -> None:
        """Our side failed: the engine goes on, and what is believed of its requests is checked before the next plan."""
        self.books.doubtful = True
        self._planner.disturb()
        self._fall_back("exception", f"{where}: {type(error).__name__}: {error}")

    def gone(self, ids: Iterable[str]) -> None:
        """Requests left before their end: aborted by their clients, or failed."""
        for id in ids:
            self._foreign.discard(id)
            job = self.books.remove(id)
            if job is not None:
                self._planner.disturb()
                self._outcomes.gone(job)

    # One step.

    def next_plan(self) -> StepPlan | None:
        """What to do now; None leaves the step to the engine's own scheduler."""
        self._began_s = self._clock()
        plan = None
        try:
            plan = self._plan(max(self._began_s, self._expected_s()))
        except PlannerError as error:
            self._fall_back(error.reason, str(error))
        except Exception as error:  # whatever it is, the engine goes on
            self.failed("next_plan", error)
        self._planned_s = self._clock() - self._began_s
        return plan

    def _expected_s(self) -> float:
        """When the batches in flight should have ended."""
        if not self._in_flight:
            return -math.inf
        return self._ready_s + sum(batch.predicted_s for batch in self._in_flight)

    def _plan(self, now_s: float) -> StepPlan | None:
        roster, planner = self.roster, self._planner
        if self._foreign:
            raise PlannerError("unsupported", "a session with streaming input is in the engine")
        if self.books.doubtful:
            gone, foreign = self.books.check(self._port.states())
            self.gone(gone)
            self._foreign.update(foreign)
            planner.disturb()
        if not roster.running and not roster.num_waiting:
            self._busy_s = self._began_s
            return StepPlan() if roster.ending else None
        if planner.sleeps(self._began_s):
            self._busy_s = self._began_s
            return StepPlan()
        if self._began_s - self._busy_s > STUCK_S and not self._in_flight:
            self._busy_s = self._began_s
            self.books.doubtful = True
            raise PlannerError("stuck", f"nothing scheduled for {STUCK_S} s")
        if self._prefix_caching and roster.num_waiting:
            self._look_again()
        free_blocks = self._port.free_kv_blocks()
        if self._acceptance:
            # Drafts in flight and the slots set aside for the next ones may hold one block more than is believed.
            free_blocks = max(0, free_blocks - len(roster.running))
        view = StepView(
            now_s,
            self.live.engine,
            self.live.plain,
            free_blocks,
            self._latest_s * self._ratio if self._followed else None,
            self._acceptance,
        )
        snapshot, allocation = planner.plan(view, roster)
        away = self._carry_out(snapshot, allocation)
        busy = allocation.tokens or allocation.preempted or away or any(batch.sample for batch in self._in_flight)
        if not busy and allocation.wake_s == math.inf:
            raise PlannerError("idle", f"policy {self._config.policy!r} serves none of {roster.num_waiting} that wait")
        tokens = [(job.id, count) for job, count in allocation.tokens if job.id not in away]
        if self._acceptance:
            tokens = self._draftable(allocation, tokens)
        return StepPlan(tokens, [job.id for job in allocation.preempted if job.id not in away])

    def _draftable(self, allocation: Allocation, tokens: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """The plan with no more drafts than there are to verify, and without decodes that are about to end."""
        most = {job.id: self._port.next_tokens(job.id) for job, _ in allocation.tokens if job.decoding}
        return [(id, min(count, most.get(id, count))) for id, count in tokens if most.get(id, 1)]

    def _carry_out(self, snapshot: EngineSnapshot, allocation: Allocation) -> set[str]:
        """Promises, demotions and refusals; who was sent away."""
        away: set[str] = set()
        for job in allocation.admitted:
            job.standing = Standing.ADMITTED
        for job in (*allocation.rejected, *allocation.demoted):
            if job.standing is Standing.BEST_EFFORT and job not in allocation.rejected:
                continue
            never = job.known_tokens > min(
                snapshot.engine.max_model_len, snapshot.engine.kv_blocks * snapshot.engine.block_size_tokens
            )
            reason = "too_long" if never else self._why(snapshot, job)
            refused = never or (self._config.on_unattainable == "refuse" and not job.emitted_tokens)
            if refused:
                self._send_away(snapshot, job, reason)
                away.add(job.id)
            elif job.standing is not Standing.BEST_EFFORT:
                live = self._live(job)
                self._outcomes.best_effort(live, reason)
                self.roster.demote(live)
        return away

    @staticmethod
    def _why(snapshot: EngineSnapshot, job: Job) -> str:
        if job.missed or (job.decoding and job.due_s < snapshot.now_s):
            return "late"
        least_s = snapshot.engine.least_prefill_s(job.left_tokens, job.computed_tokens)
        return "unattainable" if snapshot.now_s + least_s > job.due_s else "displaced"

    def _send_away(self, snapshot: EngineSnapshot, job: Job, reason: str) -> None:
        self._outcomes.refused(self._live(job), reason)
        waiting_s = sum(snapshot.engine.least_prefill_s(other.left_tokens) for other in snapshot.waiting)
        self._port.refuse(job.id, refusal_text(reason, min(MAX_RETRY_S, waiting_s)))

    def _live(self, job: Job) -> LiveJob:
        live = self.roster.get(job.id)
        assert live is not None
        return live

    def _fall_back(self, reason: str, detail: str) -> None:
        self.metrics.fallback(reason)
        if reason not in self._told:
            self._told.add(reason)
            logger.warning(
                "slo-opt leaves this step to vLLM's own scheduler (%s: %s); further cases are only counted, in "
                "slo_opt_fallbacks_total",
                reason,
                detail,
            )

    def scheduled(
        self,
        plan: StepPlan | None,
        tokens: Mapping[str, int],
        preempted: Iterable[str],
        computed_tokens: Callable[[str], int],
        deviations: Deviations,
    ) -> None:
        """What the engine scheduled.

        Parameters
        ----------
        plan : StepPlan or None
            What it was asked for.
        tokens : mapping of str to int
            By request, what is in the batch.
        preempted : iterable of str
            Requests that lost their KV blocks in this step.
        computed_tokens : callable
            Of a request that begins: its tokens in the KV cache, this batch included.
        deviations : Deviations
            Where the plan was not followed.
        """
        sample, predicted_s = None, 0.0
        called_s = self._clock()
        try:
            self.books.preempted(preempted)
            sample, begun = self.books.scheduled(tokens, computed_tokens)
            for job in begun:
                if job.standing is Standing.UNDECIDED:
                    self._outcomes.admitted(job)
            if sample is not None:
                predicted_s = self.live.predict_s(sample)
            followed = plan is not None and not deviations
            if not followed:
                self._planner.disturb()
                for kind, times in deviations.counts().items():
                    for _ in range(times):
                        self.metrics.deviation(kind)
            if tokens:
                self._busy_s = self._began_s
                self._latest_s, self._followed = predicted_s, followed
        finally:
            drafts = tokens if sample is not None and sample.draft_steps else {}
            self._in_flight.append(_Batch(self._began_s, sample, predicted_s, drafts))
            self._planned_s += self._clock() - called_s

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """The oldest batch in flight has run; what its requests got."""
        now_s = self._clock()
        batch = self._in_flight.popleft()
        found = self.books.delivered(deliveries, batch.drafts, now_s)
        for job in found.finished:
            self._planner.ended(RoundEnd(job.id, job.round_slo, job.delivered, job.missed))
            self._outcomes.finished(job)
        if found.drafted:
            share = min(found.accepted / found.drafted, 0.99)
            self._acceptance += LEARN_ACCEPTANCE * (share - self._acceptance)
        self._measure(batch, now_s)

    def _measure(self, batch: _Batch, now_s: float) -> None:
        seconds = now_s - max(batch.began_s, self._ready_s)
        self._ready_s = now_s
        if batch.sample is None:
            return
        self._busy_s = now_s
        self._planner.wake()
        sample = batch.sample.timed(seconds)
        if batch.predicted_s > 0:
            self._ratio = seconds / batch.predicted_s
        if self._step_log is not None:
            self._step_log.write(sample, batch.predicted_s)
        self.live.observe(sample)
        self.metrics.step(self._planned_s, batch.predicted_s, seconds)
        self._batches += 1
        if self._batches % SHOW_EVERY and len(self.roster):
            return
        self.metrics.state(
            len(self.roster.running),
            self.roster.num_waiting,
            self._port.free_kv_blocks(),
            self.live.margin,
            self.roster.num_best_effort,
        )

    # Prefix-cache hits.

    def _look(self, job: LiveJob) -> None:
        self.books.found(job, min(self._port.cached_tokens(job.id), job.known_tokens - 1))

    def _look_again(self) -> None:
        """Look up a few waiting requests a step, all in turn, and always those whose own blocks may still be there."""
        jobs = self.roster.waiting(self._config.max_planned_waiting)
        for job in jobs:
            if job.preemptions:
                self._look(job)
        first = self._looked % len(jobs)
        for job in islice(jobs, first, first + LOOKS_A_STEP):
            self._look(job)
        self._looked = first + LOOKS_A_STEP

    def close(self) -> None:
        """Write what is buffered."""
        self._outcomes.close()
        if self._step_log is not None:
            self._step_log.close()
