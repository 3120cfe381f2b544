"""vLLM's own scheduler with the planner in it, on a virtual clock that the batch times of an engine model move."""

from collections import Counter
from functools import partial
from pathlib import Path

from harness import EngineSettings, Harness

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.engine_bridge.bridge import Bridge
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.planner import Planner
from slo_opt.engine_bridge.scheduler import slo_scheduler
from slo_opt.engine_bridge.vllm_state import request_state


class _Counts:
    """Stands in for `BridgeMetrics`: what would be shown at /metrics."""

    def __init__(self) -> None:
        self.fallbacks: Counter[str] = Counter()
        self.deviations: Counter[str] = Counter()
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.ends: Counter[tuple[str, bool | None]] = Counter()

    def fallback(self, reason: str) -> None:
        self.fallbacks[reason] += 1

    def deviation(self, kind: str) -> None:
        self.deviations[kind] += 1

    def decided(self, slo: str, outcome: str, reason: str) -> None:
        self.decisions[outcome, reason] += 1

    def ended(self, slo: str, attained: bool | None, outcome: str) -> None:
        self.ends[outcome, attained] += 1

    def step(self, *figures: object) -> None:
        pass

    def state(self, *figures: object, **more: object) -> None:
        pass


class LiveHarness(Harness):
    """Serves single-round requests with `slo_scheduler` around vLLM's class.

    Attributes
    ----------
    batches : list of (float, dict)
        Start, and tokens by request.
    delivered_s : dict of str to list of float
        When each request got its tokens.
    counts : _Counts
        What the bridge counted.
    """

    def __init__(
        self, folder: Path, settings: EngineSettings, config: BridgeConfig, engine: EngineModel, **more: object
    ) -> None:
        self.now_s = 0.0
        self.engine = engine
        steer = lambda base: partial(slo_scheduler(base), slo_opt_config=config, slo_opt_clock=lambda: self.now_s)  # noqa: E731
        super().__init__(folder, settings, steer, **more)
        self.counts = _Counts()
        self.bridge: Bridge = self.scheduler.slo_opt
        self.bridge.metrics = self.bridge._outcomes._metrics = self.counts
        # The engine is known: what is tested here is what is done with it.
        live = LiveEngine(engine, learn=False, recalibrate=False, quantile=0.5)
        self.bridge.live = live
        self.bridge._planner = Planner(config, live.engine, lambda: self.now_s)
        self.batches: list[tuple[float, dict[str, int]]] = []
        self.delivered_s: dict[str, list[float]] = {}
        self.aborts: list[tuple[float, str]] = []
        self._ends_s: list[float] = []
        self._free_s = 0.0
        self.audited = 0

    def serve(self, instance: Instance, fields=lambda request, name: {"slo_class": name}, prompts=None) -> None:
        """Play everything."""
        arrivals = list(instance.requests)
        idle = 0
        while arrivals or self.scheduler.has_unfinished_requests() or self.in_flight:
            while arrivals and arrivals[0].arrival_s <= self.now_s:
                request = arrivals.pop(0)
                stage = request.stages[0]
                extra = fields(request, instance.slo_of(request).name)
                prompt = stage.prompt_tokens if prompts is None else prompts(request)
                self.add(request.id, prompt, stage.output_tokens, arrival_s=request.arrival_s, extra_args=extra)
            for item in [item for item in self.aborts if item[0] <= self.now_s]:
                self.aborts.remove(item)
                if item[1] in self.scheduler.requests:
                    self.abort(item[1])
            if not self.scheduler.has_unfinished_requests():
                if self.in_flight:
                    self.complete()
                elif arrivals:
                    self.now_s = max(self.now_s, arrivals[0].arrival_s)
                continue
            if self.step().num_scheduled_tokens:
                idle = 0
                continue
            idle += 1
            assert idle < 100_000, "nobody is served"
            if not self.in_flight:
                self.now_s = min(self.now_s + 0.001, arrivals[0].arrival_s if arrivals else 1e9)

    def step(self):
        """One step; the clock moves to the end of the batch that completes."""
        before = {name: len(ledger.received) for name, ledger in self.ledgers.items()}
        output = super().step()
        for name, ledger in self.ledgers.items():
            new = len(ledger.received) - before[name]
            self.delivered_s.setdefault(name, []).extend([self.now_s] * new)
        if not self.settings.draft_tokens:
            self.audit()
        return output

    def complete(self) -> None:
        """The oldest batch in flight ends, at its time."""
        while len(self._ends_s) < len(self.in_flight):
            self._ends_s.append(self._end_of(self.in_flight[len(self._ends_s)].output))
        end_s = self._ends_s.pop(0)
        self.now_s = max(self.now_s, end_s)
        super().complete()

    def _end_of(self, output) -> float:
        tokens = dict(output.num_scheduled_tokens)
        if not tokens:
            return self.now_s
        begin_s = max(self.now_s, self._free_s)
        self.batches.append((begin_s, tokens))
        batch = self.bridge._in_flight[len(self._ends_s)]
        assert batch.sample is not None
        assert batch.sample.num_tokens == sum(tokens.values())
        self._free_s = begin_s + self.bridge.live.predict_s(batch.sample)
        return self._free_s

    def audit(self) -> None:
        """What the bridge believes of each request is what vLLM says."""
        running = {request.request_id for request in self.scheduler.running}
        for job in self.bridge.roster:
            request = self.scheduler.requests[job.id]
            state = request_state(request)
            assert (job.id in self.bridge.roster.running or job.id in self.bridge.roster.ending) == (job.id in running)
            if job.id in running:
                assert job.known_tokens == state.known_tokens, job.id
                assert job.computed_tokens == state.computed_tokens, job.id
                assert job.emitted_tokens == state.output_tokens, job.id
                assert job.decoding == state.decoding, job.id
                self.audited += 1
        assert {job.id for job in self.bridge.roster} == set(self.scheduler.requests)
