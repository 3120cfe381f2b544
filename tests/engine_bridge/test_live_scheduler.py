"""The planner inside vLLM's own scheduler class: the simulator's schedule, and nothing lost whatever happens."""

import random
from dataclasses import replace

import pytest
from harness import EngineSettings
from ideal_engine import config_for
from needs_vllm import require_vllm
from test_bridge import workload

from slo_opt.domain.instance import Instance
from slo_opt.simulate.play import play


@pytest.fixture(autouse=True)
def _vllm() -> None:
    require_vllm()


def harness(folder, instance: Instance, settings: EngineSettings | None = None, **config):
    from live_harness import LiveHarness

    engine = instance.engine
    settings = replace(
        settings or EngineSettings(),
        kv_blocks=engine.kv_blocks,
        block_size=engine.block_size_tokens,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        max_model_len=engine.max_model_len,
    )
    return LiveHarness(folder, settings, config_for(instance, **config), engine)


@pytest.mark.parametrize("policy", ["slo-opt", "slos-serve", "qoserve"])
@pytest.mark.parametrize(("name", "rate", "kv_blocks"), [("chatbot", 8.0, 4000), ("coder", 6.0, 900)])
def test_vllm_serves_what_the_simulator_serves(tmp_path, policy, name, rate, kv_blocks) -> None:
    instance = workload(name, rate, kv_blocks=kv_blocks, duration_s=10.0)
    run = play(instance, policy)
    live = harness(tmp_path, instance, policy=policy)
    live.serve(instance)
    simulated = [
        (batch.start_s, {instance.requests[k].id: n for k, n in zip(batch.requests, batch.tokens, strict=True)})
        for batch in run.schedule
    ]
    for number, (got, expected) in enumerate(zip(live.batches, simulated, strict=False)):
        assert got[1] == expected[1], number
        assert got[0] == pytest.approx(expected[0], abs=1e-6), number
    assert len(live.batches) == len(simulated)
    assert not live.counts.fallbacks
    assert not live.counts.deviations
    assert live.audited


SETTINGS = {
    "one in flight": EngineSettings(),
    "prefix cache": EngineSettings(prefix_caching=True),
    "drafts": EngineSettings(draft_tokens=3),
    "two in flight": EngineSettings(asynchronous=True),
    "two in flight, prefix cache": EngineSettings(asynchronous=True, prefix_caching=True),
    "two in flight, drafts": EngineSettings(asynchronous=True, draft_tokens=3),
    "two in flight, second runner": EngineSettings(asynchronous=True, v2_model_runner=True),
}


@pytest.mark.parametrize("mode", SETTINGS)
@pytest.mark.parametrize("policy", ["slo-opt", "slos-serve"])
@pytest.mark.parametrize("answer", ["best-effort", "refuse"])
def test_nothing_is_lost(tmp_path, mode, policy, answer) -> None:
    """Short of memory, shared prefixes, aborts: exact outputs, no deviation, no block held, nobody stuck."""
    draw = random.Random(mode)
    instance = workload("chatbot", 10.0, seed=3, duration_s=8.0, kv_blocks=500)
    live = harness(tmp_path, instance, SETTINGS[mode], policy=policy, on_unattainable=answer)
    names = [request.id for request in instance.requests]
    live.aborts = [(draw.uniform(0, 10), draw.choice(names)) for _ in range(10)]
    shared = [draw.randrange(100) for _ in range(2000)]

    def prompt(request):
        length = request.stages[0].prompt_tokens
        common = min(length // 2, 400) if draw.random() < 0.5 else 0
        return shared[:common] + [draw.randrange(100) for _ in range(length - common)]

    live.serve(instance, prompts=prompt)
    assert not live.counts.fallbacks
    if SETTINGS[mode].prefix_caching:  # a preempted request frees fewer blocks than it holds where it shares some
        assert set(live.counts.deviations) <= {"missing"}
    else:
        assert not live.counts.deviations
    assert live.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == instance.engine.kv_blocks
    assert len(live.bridge.roster) == 0
    assert not live.bridge.books._max_tokens
    for request in instance.requests:
        ledger = live.ledgers[request.id]
        assert ledger.finish_reason is not None, request.id
        if ledger.finish_reason == "length":
            assert len(ledger.received) == request.stages[0].output_tokens
        elif ledger.stop_reason is not None:
            assert answer == "refuse"
            assert ledger.stop_reason.startswith("slo-opt: refused")
            assert not ledger.received
    left = sum(live.counts.ends.values())
    assert left == len(instance.requests)
