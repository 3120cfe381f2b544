"""An engine that follows every plan to the token, on a virtual clock that its batch times move."""

import heapq

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.domain.instance import Instance
from slo_opt.engine_bridge.books import Delivery
from slo_opt.engine_bridge.bridge import Bridge
from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.metrics import BridgeMetrics
from slo_opt.engine_bridge.step_plan import NO_DEVIATIONS
from slo_opt.engine_bridge.vllm_state import RequestState


class _State:
    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.prompt_tokens, self.output_tokens = prompt_tokens, output_tokens
        self.computed = self.produced = self.blocks = 0

    @property
    def known(self) -> int:
        return self.prompt_tokens + self.produced


class IdealEngine:
    """Serves the single-round requests of an instance under a `Bridge`.

    Attributes
    ----------
    batches : list of (float, dict)
        Start, and tokens by request.
    refused : dict of str to str
        Reason by request.
    on_time : dict of str to float
        Worst lateness of each request, recounted here.
    """

    def __init__(self, instance: Instance, config: BridgeConfig, slowdown: float = 1.0) -> None:
        self.instance = instance
        self.engine: EngineModel = instance.engine
        self.now_s = 0.0
        self.slowdown = slowdown
        self.batches: list[tuple[float, dict[str, int]]] = []
        self.refused: dict[str, str] = {}
        self.finished: dict[str, list[float]] = {}
        self.states_: dict[str, _State] = {}
        self.running: list[str] = []
        self.tokens_at: dict[str, list[float]] = {}
        self.abort_at: list[tuple[float, str]] = []
        live = LiveEngine(instance.engine, learn=False, recalibrate=False, quantile=0.5)
        self.bridge = Bridge(
            config,
            self,
            instance.engine,
            live,
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
            metrics=BridgeMetrics(config.classes),
        )

    def free_kv_blocks(self) -> int:
        return self.engine.kv_blocks - sum(state.blocks for state in self.states_.values())

    def cached_tokens(self, id: str) -> int:
        return 0

    def next_tokens(self, id: str) -> int:
        return 1

    def refuse(self, id: str, reason: str) -> None:
        self.refused[id] = reason
        self._drop(id)
        self.bridge.gone([id])

    def states(self) -> dict[str, tuple[bool, RequestState]]:
        return {
            id: (
                id in self.running,
                RequestState(s.known, s.computed, s.produced, s.produced > 0 and s.known - s.computed == 1, 0),
            )
            for id, s in self.states_.items()
        }

    def _drop(self, id: str) -> None:
        del self.states_[id]
        if id in self.running:
            self.running.remove(id)

    def serve(self, until_s: float = 1e9) -> None:
        """Play everything."""
        arrivals = [(request.arrival_s, k, request) for k, request in enumerate(self.instance.requests)]
        heapq.heapify(arrivals)
        idle = 0
        while (arrivals or self.states_) and self.now_s < until_s:
            while arrivals and arrivals[0][0] <= self.now_s:
                request = heapq.heappop(arrivals)[2]
                stage = request.stages[0]
                self.states_[request.id] = _State(stage.prompt_tokens, stage.output_tokens)
                self.tokens_at[request.id] = []
                fields = {"slo_class": self.instance.slo_of(request).name}
                self.bridge.add(request.id, fields, request.arrival_s, stage.prompt_tokens, stage.output_tokens)
            for when in list(self.abort_at):
                if when[0] <= self.now_s:
                    self.abort_at.remove(when)
                    if when[1] in self.states_:
                        self._drop(when[1])
                        self.bridge.gone([when[1]])
            if not self.states_:
                if arrivals:
                    self.now_s = max(self.now_s, arrivals[0][0])
                continue
            if self._step():
                idle = 0
                continue
            idle += 1
            assert idle < 100_000, "the planner serves nobody"
            self.now_s = min(self.now_s + 0.001, arrivals[0][0] if arrivals else 1e9)

    def _step(self) -> bool:
        plan = self.bridge.next_plan()
        if plan is None:  # what vLLM would do: first come, first served, one token budget
            plan_tokens, preempt = self._own(), ()
        else:
            plan_tokens, preempt = dict(plan.tokens), plan.preempt
        for id in preempt:
            state = self.states_[id]
            state.computed = state.blocks = 0
            self.running.remove(id)
        context, pairs = 0, 0.0
        for id, count in plan_tokens.items():
            state = self.states_[id]
            if state.produced and state.known - state.computed == 1:
                context += state.computed
            else:
                pairs += prefill_pairs(count, state.computed)
            state.computed += count
            assert state.computed <= state.known
            state.blocks = self.engine.kv_blocks_for(state.computed)
            if id not in self.running:
                self.running.append(id)
        assert self.free_kv_blocks() >= 0
        self.bridge.scheduled(plan, plan_tokens, preempt, lambda id: self.states_[id].computed, NO_DEVIATIONS)
        if plan_tokens:
            self.batches.append((self.now_s, plan_tokens))
            self.now_s += self.slowdown * self.engine.batch_time_s(
                sum(plan_tokens.values()),
                decode_context_tokens=context,
                prefill_pairs=pairs,
                num_requests=len(plan_tokens),
            )
        self.bridge.delivered([self._deliver(id) for id in plan_tokens])
        return bool(plan_tokens) or bool(preempt)

    def _deliver(self, id: str) -> Delivery:
        state = self.states_[id]
        if state.computed < state.known:
            return Delivery(id, (), state.known, False)
        state.produced += 1
        self.tokens_at[id].append(self.now_s)
        done = state.produced == state.output_tokens
        if done:
            self.finished[id] = self.tokens_at[id]
            self._drop(id)
        return Delivery(id, (7,), state.known, done)

    def _own(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        budget, free = self.engine.max_num_batched_tokens, self.free_kv_blocks()
        for id in [*self.running, *(id for id in self.states_ if id not in self.running)]:
            state = self.states_[id]
            count = min(state.known - state.computed, budget)
            blocks = self.engine.kv_blocks_for(state.computed + count) - state.blocks
            if count < 1 or blocks > free or len(tokens) == self.engine.max_num_seqs:
                break
            tokens[id] = count
            budget, free = budget - count, free - blocks
        return tokens


def config_for(instance: Instance, **others: object) -> BridgeConfig:
    """The classes of an instance as a configuration; deadlines are not brought forward."""
    classes = {}
    for slo in instance.slo_classes.values():
        if slo.best_effort:
            classes[slo.name] = LiveClass(slo.name, best_effort=True)
        else:
            classes[slo.name] = LiveClass(slo.name, slo.ttft_ms, slo.ttft_slowdown, slo.tpot_ms, weight=slo.weight)
    fields = {"headroom_ms": 0.0, "cushion_ms": 0.0, "planner_limit_ms": 60_000.0, **others}
    return BridgeConfig(classes=classes, **fields)  # type: ignore[arg-type]
