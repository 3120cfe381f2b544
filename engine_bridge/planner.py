"""The policy of the simulator, asked about a live engine, and guarded: whatever goes wrong, the engine goes on."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.slo import SloClass
from slo_opt.engine_bridge.check import impossible
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.roster import Roster
from slo_opt.policies.interface import Allocation, AllocationPolicy, EngineSnapshot, RoundEnd
from slo_opt.policies.lengths import QuantileLengths
from slo_opt.policies.registry import PolicyContext, make_policy, prepare

logger = logging.getLogger(__name__)

REBUILD_RATIO = 1.25  # a policy starts anew once a typical batch takes so much more or less than it was told
FIRST_TPOT_S = 0.05  # tightest TPOT assumed until a request asks for one
_TYPICAL_TOKENS = 64


class PlannerError(Exception):
    """No plan for this step: the engine decides itself. `reason` is a value of `slo_opt.engine_bridge.metrics`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


@dataclass(slots=True)
class StepView:
    """What the planner needs to know of the engine beyond its requests.

    Parameters
    ----------
    now_s : float
        When the batch that is planned begins.
    engine, plain : EngineModel
        As believed now, with the margin and without.
    free_kv_blocks : int
        Blocks free.
    last_batch_s : float or None
        What the batch of the last plan took, or is expected to take while it runs; None where it was not followed.
    acceptance : float
        Share of drafted tokens accepted; 0 without drafts.
    """

    now_s: float
    engine: EngineModel
    plain: EngineModel
    free_kv_blocks: int
    last_batch_s: float | None = None
    acceptance: float = 0.0


@dataclass(slots=True)
class Planner:
    """Asks the policy of the configuration before every batch.

    A fresh policy takes over when one fails, when batch times turn out far from what it was built for, or when a
    request brings a tighter TPOT. What was learned of output lengths, class by class, stays.

    Parameters
    ----------
    config : BridgeConfig
        Policy, setting, limits.
    engine : EngineModel
        To begin with.
    clock : callable
        Seconds, monotonic; for the time of a decision.
    """

    config: BridgeConfig
    engine: EngineModel
    clock: Callable[[], float]
    disturbed: bool = True
    _finished: list[RoundEnd] = field(default_factory=list)
    _lengths: QuantileLengths = field(default_factory=QuantileLengths)
    _tightest_s: float = math.inf
    _policy: AllocationPolicy | None = None
    _seen: EngineModel | None = None
    _wake_s: float = -math.inf

    def __post_init__(self) -> None:
        under_slo = [slo for slo in self.config.slo_classes().values() if not slo.best_effort]
        self._tightest_s = min([slo.tpot_ms / 1e3 for slo in under_slo], default=FIRST_TPOT_S)
        prepare([self.config.policy])
        self._policy = self._build(self.engine)

    def _build(self, engine: EngineModel) -> AllocationPolicy:
        classes = self.config.slo_classes()
        tightest = SloClass("tightest of all requests", self._tightest_s * 1e3, ttft_slowdown=1e6)
        classes[tightest.name] = tightest
        self.engine = engine
        self.disturbed = True
        return make_policy(self.config.policy, PolicyContext(engine, classes, self._lengths), self.config.setting)

    def _outgrown(self, engine: EngineModel) -> bool:
        """Whether batch times are far from what the policy was built for; each model is looked at once."""
        if engine is self._seen:
            return False
        self._seen = engine
        return _apart(engine, self.engine)

    def expect_tpot(self, tpot_s: float) -> None:
        """A request with this TPOT came."""
        if tpot_s < 0.9 * self._tightest_s:
            self._tightest_s = tpot_s
            self._policy = self._build(self.engine)

    def ended(self, end: RoundEnd) -> None:
        """A request produced its last token."""
        self._finished.append(end)
        del self._finished[:-10_000]  # if nobody asks for them

    def disturb(self) -> None:
        """The engine did otherwise than planned, or a request left in between."""
        self.disturbed = True
        self.wake()

    def wake(self) -> None:
        """There is something new to decide."""
        self._wake_s = -math.inf

    def sleeps(self, now_s: float) -> bool:
        """Whether the last plan was to do nothing until later than `now_s`, and nothing has happened since."""
        return now_s < self._wake_s

    def plan(self, view: StepView, roster: Roster) -> tuple[EngineSnapshot, Allocation]:
        """The next batch.

        Raises
        ------
        PlannerError
            The policy failed, took too long, or answered what cannot be done.
        """
        began_s = self.clock()
        try:
            if self._policy is None or self._outgrown(view.plain):
                self._policy = self._build(view.plain)
            finished, self._finished = self._finished, []
            snapshot = EngineSnapshot(
                view.now_s,
                view.engine,
                list(roster.running.values()),
                list(roster.waiting(self.config.max_planned_waiting)),
                view.free_kv_blocks,
                finished,
                view.last_batch_s,
                view.acceptance,
                self.disturbed,
            )
            self.disturbed = False
            allocation = self._policy.decide(snapshot)
            problem = impossible(snapshot, allocation)
        except Exception as error:
            self._policy = None  # who knows what it believes now
            self.disturb()
            raise PlannerError("exception", f"{type(error).__name__}: {error}") from error
        took_ms = (self.clock() - began_s) * 1e3
        if problem is not None:
            self.disturb()
            raise PlannerError("impossible_plan", problem)
        if took_ms > self.config.planner_limit_ms:
            self.disturb()
            raise PlannerError("overrun", f"{took_ms:.1f} ms; planner_limit_ms is {self.config.planner_limit_ms:g}")
        if not allocation.tokens and not allocation.preempted:
            self._wake_s = allocation.wake_s
        return snapshot, allocation


def _apart(now: EngineModel, before: EngineModel) -> bool:
    """Whether two models of one engine differ so much that a policy should start anew."""
    ratios = [
        now.batch_time_s(tokens, num_requests=1) / max(before.batch_time_s(tokens, num_requests=1), 1e-9)
        for tokens in (1, _TYPICAL_TOKENS, before.max_num_batched_tokens)
    ]
    return not all(1 / REBUILD_RATIO <= ratio <= REBUILD_RATIO for ratio in ratios)
