"""The bridge on an engine that follows it: the simulator's schedule, batch by batch; and what it survives."""

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ideal_engine import IdealEngine, config_for

from slo_opt.domain.instance import Instance
from slo_opt.simulate.play import play
from slo_opt.traces.generate import generate


def workload(name: str, rate: float, seed: int = 1, duration_s: float = 20.0, kv_blocks: int | None = None) -> Instance:
    instance = generate(name, rate=rate, duration_s=duration_s, engine="llama-3-8b-a100", seed=seed).to_instance()
    requests = tuple(request for request in instance.requests if len(request.stages) == 1)
    engine = instance.engine
    if kv_blocks is not None:  # as vLLM demands, one request of full length fits
        longest = min(engine.max_model_len, kv_blocks * engine.block_size_tokens)
        engine = replace(engine, kv_blocks=kv_blocks, max_model_len=longest)
        requests = tuple(r for r in requests if r.prompt_tokens + r.output_tokens <= longest)
    return replace(instance, requests=requests, engine=engine)


@pytest.mark.parametrize("policy", ["slo-opt", "slos-serve", "vllm-fcfs", "edf", "qoserve", "jitserve", "sarathi"])
@pytest.mark.parametrize(("name", "rate", "kv_blocks"), [("chatbot", 8.0, None), ("coder", 6.0, 900)])
def test_it_decides_as_in_the_simulator(policy: str, name: str, rate: float, kv_blocks: int | None) -> None:
    instance = workload(name, rate, kv_blocks=kv_blocks)
    run = play(instance, policy)
    engine = IdealEngine(instance, config_for(instance, policy=policy))
    engine.serve()
    simulated = [
        (batch.start_s, {instance.requests[k].id: n for k, n in zip(batch.requests, batch.tokens, strict=True)})
        for batch in run.schedule
    ]
    for number, (live, expected) in enumerate(zip(engine.batches, simulated, strict=False)):
        assert live[1] == expected[1], number
        assert live[0] == pytest.approx(expected[0], abs=1e-6), number
    assert len(engine.batches) == len(simulated)
    assert set(engine.finished) == {r.id for r, done in zip(instance.requests, run.finished, strict=True) if done}


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    seed=st.integers(0, 1000),
    rate=st.sampled_from([2.0, 6.0, 12.0]),
    kv_blocks=st.sampled_from([200, 600, None]),
    policy=st.sampled_from(["slo-opt", "slos-serve", "vllm-fcfs", "qoserve"]),
    refuse=st.booleans(),
    aborts=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 60)), max_size=20),
)
def test_every_request_leaves(seed, rate, kv_blocks, policy, refuse, aborts) -> None:
    """Finished, refused or aborted: nobody is stuck, nothing is left in the books, KV is all free."""
    instance = workload("chatbot", rate, seed, 6.0, kv_blocks)
    if not instance.requests:
        return
    answer = "refuse" if refuse else "best-effort"
    engine = IdealEngine(instance, config_for(instance, policy=policy, on_unattainable=answer))
    ids = [request.id for request in instance.requests]
    engine.abort_at = [(when_s, ids[k % len(ids)]) for when_s, k in aborts]
    engine.serve()
    assert len(engine.bridge.roster) == 0
    assert engine.free_kv_blocks() == instance.engine.kv_blocks
    if not refuse and not aborts:
        assert set(engine.finished) == set(ids)
