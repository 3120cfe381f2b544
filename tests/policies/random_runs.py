"""Random instances and what a policy may know of them, for tests that every policy must pass."""

import random
from dataclasses import dataclass, replace

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.policies.lengths import LengthPredictor, NoLengths, OracleLengths, QuantileLengths
from slo_opt.policies.registry import PolicyContext, make_policy
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions, simulate
from slo_opt.traces.trace import context_tokens


@dataclass(frozen=True)
class Case:
    """An instance, how the engine differs from its model, and what the policy knows."""

    instance: Instance
    options: SimulationOptions
    lengths: str

    def predictor(self) -> LengthPredictor:
        if self.lengths == "oracle":
            return OracleLengths.of(self.instance)
        return NoLengths() if self.lengths == "none" else QuantileLengths(0.7, default_tokens=4)

    def run(self, name: str, setting: dict[str, object] | None = None) -> Run:
        instance = self.instance
        context = PolicyContext(instance.engine, instance.slo_classes, self.predictor())
        return simulate(instance, make_policy(name, context, setting), self.options)


def random_case(rng: random.Random) -> Case:
    """Everything at once: rounds, phases, best effort, scarce memory, few sequences, hopeless limits, drafts, noise."""
    options = SimulationOptions(
        seed=rng.randrange(1000),
        noise=rng.choice([0.0, 0.0, 0.3]),
        slowdown=rng.choice([1.0, 1.0, 1.3]),
        acceptance=rng.choice([0.0, 0.0, 0.6, 0.9]),
    )
    return Case(_instance(rng), options, rng.choice(["none", "quantile", "oracle"]))


def _instance(rng: random.Random) -> Instance:
    engine = _engine(rng)
    step_ms = 1e3 * engine.batch_time_s(1, num_requests=1)
    classes = {
        "tight": SloClass("tight", step_ms * rng.choice([0.5, 1.2, 2.0]), ttft_slowdown=rng.choice([1.0, 3.0])),
        "loose": SloClass("loose", step_ms * rng.choice([3.0, 7.0]), ttft_ms=step_ms * rng.choice([5.0, 60.0])),
        "spare": SloClass("spare", 1000.0, ttft_ms=60_000.0, best_effort=True),
    }
    names = rng.choice([["tight", "loose"], ["tight", "loose", "spare"], ["loose"], ["spare"]])
    longest = rng.choice([40, 200])
    gap_s = rng.choice([0.0, 1.0, 20.0]) * step_ms / 1e3
    arrival_s = 0.0
    requests = []
    for i in range(rng.randint(1, 25)):
        stages = [_prompt(rng, longest, rng.choice(names))]
        kind = rng.random()
        if kind < 0.15:
            stages.append(Stage(0, rng.randint(1, 8), rng.choice(names)))
        elif kind < 0.35:
            for _ in range(rng.randint(1, 2)):
                pause_s = rng.choice([0.0, 5 * step_ms / 1e3])
                stages.append(replace(_prompt(rng, longest, rng.choice(names)), pause_s=pause_s))
        requests.append(Request(f"r{i}", arrival_s, tuple(stages)))
        arrival_s += rng.expovariate(1.0) * gap_s
    # Mostly a little more memory than the longest request needs: preemptions, and few requests that never fit.
    longest = max(engine.kv_blocks_for(context_tokens(request)) for request in requests)
    if rng.random() < 0.8:
        engine = replace(engine, kv_blocks=longest + rng.choice([0, 1, longest // 2, 3 * longest, 1000]))
    return Instance("random", tuple(requests), classes, engine, rng.choice(list(ScoreRule)))


def _engine(rng: random.Random) -> EngineModel:
    return EngineModel(
        "random",
        "drawn",
        (RooflinePiece(1e-5, 8e-3), RooflinePiece(6e-5, 2e-3, per_draft_step_s=rng.choice([0.0, 1e-3]))),
        decode_context_s=rng.choice([0.0, 1e-6]),
        prefill_pair_s=rng.choice([0.0, 1e-8]),
        request_s=rng.choice([0.0, 1e-4]),
        host_s=1e-3,
        block_size_tokens=rng.choice([1, 4, 16]),
        kv_blocks=rng.choice([8, 30, 100, 1000]),
        max_num_batched_tokens=rng.choice([4, 32, 256, 2048]),
        max_num_seqs=rng.choice([1, 2, 5, 64]),
        max_model_len=rng.choice([150, 2048, 2048]),
    )


def _prompt(rng: random.Random, longest: int, slo: str) -> Stage:
    return Stage(rng.randint(1, longest), rng.randint(1, 30), slo, cached_tokens=rng.choice([0, 0, rng.randint(1, 30)]))
