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

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.decision_log import DecisionLog, ServedRequest
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.metrics import BridgeMetrics
from slo_opt.engine_bridge.planner import Planner, PlannerError, StepView
from slo_opt.engine_bridge.refusal import refusal_text
from slo_opt.engine_bridge.roster import Roster
from slo_opt.engine_bridge.slo_fields import SloFieldError, request_slo
from slo_opt.engine_bridge.step_plan import Deviations, StepPlan
from slo_opt.engine_bridge.vllm_state import RequestState
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job, RoundEnd, Standing

if TYPE_CHECKING:
    from slo_opt.engine_bridge.step_log import StepLog

logger = logging.getLogger(__name__)

STUCK_S = 1.0  # without a token scheduled while somebody waits: the engine decides itself, and the books are checked
SHOW_EVERY = 16  # batches between two looks at the state of the engine, for the metrics
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


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request of a finished batch got.

    Parameters
    ----------
    id : str
        The request.
    tokens : sequence of int
        Its new output token ids.
    known_tokens : int
        Prompt and output tokens it has now.
    finished : bool
        Whether it is complete.
    """

    id: str
    tokens: Sequence[int]
    known_tokens: int
    finished: bool


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
        self.roster = Roster()
        self.live = live
        self.metrics = metrics
        self._config = config
        self._port = port
        self._clock = clock
        self._wall_clock = wall_clock
        self._block = engine.block_size_tokens
        self._most_tokens = engine.kv_blocks * engine.block_size_tokens
        self._planner = Planner(config, live.plain, clock)
        self._decision_log = decision_log
        self._step_log = step_log
        self._prefix_caching = prefix_caching
        self._acceptance = 0.7 if drafts else 0.0  # a start; then what is seen
        self._max_tokens: dict[str, int] = {}
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
        self._doubtful = False
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
            self.metrics.decided(self._config.default_class, "malformed", "malformed")
            self._log_malformed(id, arrival_s, prompt_tokens)
            self._port.refuse(id, f"slo-opt: malformed: {error}")
            return
        if prompt_tokens > self._most_tokens:  # vLLM's own checks let no such prompt in
            self.metrics.decided(slo.slo, "refused", "too_long")
            self._port.refuse(id, refusal_text("too_long", MAX_RETRY_S))
            return
        limit_s = slo.ttft_limit_s(self.live.engine, prompt_tokens) - self._config.headroom_ms / 1e3
        job = LiveJob(id, slo, arrival_s, limit_s, prompt_tokens)
        self._max_tokens[id] = max_tokens
        if not len(self.roster):
            self._busy_s = self._clock()
        self.roster.add(job)
        if self._prefix_caching:
            self._look(job)
        if slo.best_effort:
            self.metrics.decided(slo.slo, "best_effort", "no_slo")
            job.reason = "no_slo"
        else:
            self._planner.expect_tpot(min(slo.tpot_s, slo.thinking_tpot_s or slo.tpot_s))
        self._planner.wake()

    def add_foreign(self, id: str) -> None:
        """A request that cannot be planned has come: while it is there, every step is the engine's own."""
        self._foreign.add(id)

    def failed(self, where: str, error: Exception) -> None:
        """Our side failed: the engine goes on, and what is believed of its requests is checked before the next plan."""
        self._doubtful = True
        self._planner.disturb()
        self._fall_back("exception", f"{where}: {type(error).__name__}: {error}")

    def gone(self, ids: Iterable[str]) -> None:
        """Requests left before their end: aborted by their clients, or failed."""
        for id in ids:
            self._foreign.discard(id)
            job = self.roster.remove(id)
            if job is not None:
                self._planner.disturb()
                outcome = "refused" if job.reason.startswith("refused") else "aborted"
                self._leave(job, outcome)

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
        if self._doubtful:
            self._check_books()
        if not roster.running and not roster.num_waiting:
            self._busy_s = self._began_s
            return StepPlan() if roster.ending else None
        if planner.sleeps(self._began_s):
            self._busy_s = self._began_s
            return StepPlan()
        if self._began_s - self._busy_s > STUCK_S and not self._in_flight:
            self._busy_s = self._began_s
            self._doubtful = True
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
                self.metrics.decided(job.round_slo, "best_effort", reason)
                live = self.roster.get(job.id)
                assert live is not None
                live.reason = reason
                self.roster.demote(live)
        return away

    @staticmethod
    def _why(snapshot: EngineSnapshot, job: Job) -> str:
        if job.missed or (job.decoding and job.due_s < snapshot.now_s):
            return "late"
        least_s = snapshot.engine.least_prefill_s(job.left_tokens, job.computed_tokens)
        return "unattainable" if snapshot.now_s + least_s > job.due_s else "displaced"

    def _send_away(self, snapshot: EngineSnapshot, job: Job, reason: str) -> None:
        live = self.roster.get(job.id)
        assert live is not None
        live.reason = f"refused: {reason}"
        self.metrics.decided(job.round_slo, "refused", reason)
        waiting_s = sum(snapshot.engine.least_prefill_s(other.left_tokens) for other in snapshot.waiting)
        self._port.refuse(job.id, refusal_text(reason, min(MAX_RETRY_S, waiting_s)))

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
            for id in preempted:
                self._preempted(id)
            sample = self._account(tokens, computed_tokens)
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
            self._in_flight.append(_Batch(self._began_s, sample, predicted_s))
            self._planned_s += self._clock() - called_s

    def _account(self, tokens: Mapping[str, int], computed_tokens: Callable[[str], int]) -> BatchSample | None:
        """Move the jobs of a batch on; what the engine model needs to know of it, None where that is not known."""
        running, block = self.roster.running, self._block
        context = total = draft_steps = 0
        pairs = 0.0
        foreign = False
        for id, count in tokens.items():
            total += count
            job = running.get(id)
            if job is None:
                job = self._begin(id, computed_tokens(id) - count)
                if job is None:
                    foreign = True
                    continue
            computed = job.computed_tokens
            if job.decoding:
                context += computed
                if count > 1:
                    draft_steps = max(draft_steps, count - 1)
                computed += 1
            else:
                pairs += prefill_pairs(count, computed)
                computed += count
            job.computed_tokens = computed
            if computed == job.known_tokens:
                job.known_tokens += 1  # the token in flight
                job.decoding = True
                job.advance(job.emitted_tokens + 1)
                if job.emitted_tokens >= self._max_tokens[id]:
                    self.roster.end(job)
            elif not job.decoding:
                job.decoding = job.emitted_tokens > 0 and job.known_tokens - computed == 1
            if job.kv_blocks * block < computed:
                job.kv_blocks = -(-computed // block)
        return None if foreign or not total else BatchSample(total, context, pairs, len(tokens), draft_steps)

    def _begin(self, id: str, past_tokens: int) -> LiveJob | None:
        job = self.roster.get(id)
        if job is None or id in self.roster.ending:
            return None
        job.computed_tokens = past_tokens
        if not job.emitted_tokens:
            job.cached_tokens = job.computed_tokens
            job.prompt_tokens = job.known_tokens - job.cached_tokens
        if job.standing is Standing.UNDECIDED:
            job.standing = Standing.ADMITTED
            self.metrics.decided(job.round_slo, "admitted", "on_time")
        self.roster.begin(job)
        return job

    def _preempted(self, id: str) -> None:
        job = self.roster.running.get(id) or self.roster.ending.get(id)
        if job is None:
            return
        self.roster.give_back(job)
        job.preemptions += 1
        job.kv_blocks = job.computed_tokens = 0
        job.decoding = False
        # What is in flight may still come, but nothing can build on it.
        job.known_tokens -= job.emitted_tokens - job.delivered
        job.advance(job.delivered)

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """The oldest batch in flight has run; what its requests got."""
        now_s = self._clock()
        batch = self._in_flight.popleft()
        drafted = accepted = 0
        for item in deliveries:
            job = self.roster.get(item.id)
            if job is None:
                continue
            count = len(item.tokens)
            if count:
                if job.thinking:
                    self._watch_thinking(job, item.tokens)
                job.deliver(count, now_s)
            if job.kv_blocks == 0:  # preempted meanwhile
                job.known_tokens = item.known_tokens
                job.advance(job.delivered)
            elif count > 1:
                job.known_tokens += count - 1
                job.computed_tokens += count - 1
                job.advance(job.emitted_tokens + count - 1)
            if batch.sample is not None and batch.sample.draft_steps and count:
                drafted += batch.sample.draft_steps
                accepted += count - 1
            if item.finished:
                self._finished(job)
            elif job.id in self.roster.ending and job.delivered >= job.emitted_tokens:
                self._doubtful = True  # it should have ended
        if drafted:
            self._acceptance += 0.02 * (min(accepted / drafted, 0.99) - self._acceptance)
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

    def _watch_thinking(self, job: LiveJob, tokens: Sequence[int]) -> None:
        end = self._config.thinking_end_token_id
        if end is not None:
            for position, token in enumerate(tokens):
                if token == end:
                    job.end_thinking(job.delivered + position + 1)
                    return

    def _finished(self, job: LiveJob) -> None:
        self.roster.remove(job.id)
        self._planner.ended(RoundEnd(job.id, job.round_slo, job.delivered, job.missed))
        self._leave(job, "best_effort" if job.standing is Standing.BEST_EFFORT else "admitted")

    def _leave(self, job: LiveJob, outcome: str) -> None:
        """Count and record a request that is out of the engine."""
        self._max_tokens.pop(job.id, None)
        slo = job.promise
        done = outcome in ("admitted", "best_effort")
        attained = None if slo.best_effort else done and not job.missed
        self.metrics.ended(job.round_slo, attained, outcome)
        if self._decision_log is not None:
            self._decision_log.write(self._entry(job, outcome, attained))

    def _entry(self, job: LiveJob, outcome: str, attained: bool | None) -> ServedRequest:
        slo, began = job.promise, job.delivered > 0
        headroom_s = self._config.headroom_ms / 1e3
        return ServedRequest(
            id=job.id,
            arrival_unix_s=self._wall_clock() - (self._clock() - job.release_s),
            prompt_tokens=job.prompt_tokens + job.cached_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=job.delivered,
            slo=job.round_slo,
            ttft_limit_ms=(job.first_due_s + headroom_s - job.release_s) * 1e3,
            ttft_slowdown=slo.ttft_slowdown,
            tpot_ms=slo.tpot_s * 1e3,
            thinking_tpot_ms=None if slo.thinking_tpot_s is None else slo.thinking_tpot_s * 1e3,
            thinking_tokens=job.thinking_tokens,
            weight=slo.weight,
            best_effort=slo.best_effort,
            outcome=outcome,
            reason=job.reason,
            first_token_s=job.first_token_s - job.release_s if began else None,
            last_token_s=job.last_token_s - job.release_s if began else None,
            lateness_s=job.lateness_s - headroom_s if began and not slo.best_effort else None,
            attained=attained,
            preemptions=job.preemptions,
        )

    def _log_malformed(self, id: str, arrival_s: float, prompt_tokens: int) -> None:
        if self._decision_log is None:
            return
        slo = request_slo(None, self._config)
        job = LiveJob(id, slo, arrival_s, 0.0, prompt_tokens)
        self._decision_log.write(self._entry(job, "malformed", None))

    def _check_books(self) -> None:
        """Take what is believed of each request from the engine again."""
        states = self._port.states()
        for job in list(self.roster):
            found = states.get(job.id)
            if found is None:
                self.gone([job.id])
                continue
            running, state = found
            self.roster.remove(job.id)
            job.known_tokens, job.computed_tokens = state.known_tokens, state.computed_tokens
            job.decoding = running and state.decoding
            job.advance(state.output_tokens)
            job.kv_blocks = -(-state.computed_tokens // self._block) if running else 0
            self.roster.add(job)
            if running:
                self.roster.begin(job)
        self._foreign.update(id for id in states if self.roster.get(id) is None)
        self._doubtful = False
        self._planner.disturb()

    # Prefix-cache hits.

    def _look(self, job: LiveJob) -> None:
        hit = min(self._port.cached_tokens(job.id), job.known_tokens - 1)
        job.computed_tokens = hit
        if not job.emitted_tokens:
            job.cached_tokens = hit
            job.prompt_tokens = job.known_tokens - hit

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
        if self._decision_log is not None:
            self._decision_log.close()
        if self._step_log is not None:
            self._step_log.close()
