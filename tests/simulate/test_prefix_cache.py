"""Prefix caching: what is found was computed before and still has room, and the checker accepts every run."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from watched import RandomPolicy, WatchedPolicy, drawn_instance, named

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Prefix, Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.simulate.simulator import SimulationOptions, simulate
from slo_opt.traces.read import read_trace
from slo_opt.traces.transforms import merge
from slo_opt.traces.write import write_trace

SEEDS = st.integers(0, 10**9)
CACHED = SimulationOptions(prefix_cache=True)
BLOCK = 32
CHAT = {"chat": SloClass("chat", 100.0, ttft_ms=1000.0)}


def shared(seed: int) -> tuple[random.Random, Instance]:
    """A random instance whose prompts follow a few trees of prefixes."""
    rng = random.Random(seed)
    instance = drawn_instance(rng, max_requests=14)
    requests = []
    for request in instance.requests:
        first = replace(request.stages[0], cached_tokens=0)
        path = [rng.randrange(2)]
        while (len(path) + 1) * BLOCK <= first.prompt_tokens and rng.random() < 0.9:
            path.append(path[-1] * 2 + 2 + (rng.random() < 0.3))
        prefix = Prefix(BLOCK, tuple(path)) if first.prompt_tokens >= BLOCK and rng.random() < 0.9 else None
        requests.append(replace(request, stages=(first, *request.stages[1:]), prefix=prefix))
    engine = replace(instance.engine, kv_blocks=rng.choice([40, 60, 4000]))
    return rng, replace(instance, requests=tuple(requests), engine=engine)


def found_at_best(instance: Instance, run) -> list[int]:
    """Leading blocks of each request that some batch had computed before its own first one, room or not."""
    computed: dict[int, int] = {}
    seen: set[int] = set()
    best = [0] * len(instance.requests)
    for batch in run.schedule:
        for index in batch.preempted:
            computed[index] = 0
        for index in batch.requests:
            request = instance.requests[index]
            ids = () if request.prefix is None else request.prefix.blocks
            if index not in computed:
                known = next((k for k, block in enumerate(ids) if block not in seen), len(ids))
                best[index] = min(known, (request.stages[0].prompt_tokens - 1) // BLOCK)
                computed[index] = run.schedule.cached.get(index, 0)
        for index, tokens in zip(batch.requests, batch.tokens, strict=True):
            computed[index] += tokens
            request = instance.requests[index]
            if request.prefix is not None:
                seen.update(request.prefix.blocks[: computed[index] // BLOCK])
    return best


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from(["random", "vllm-fcfs", "vllm-priority"]))
def test_runs_are_legal_and_find_only_what_was_computed(seed, policy):
    rng, instance = shared(seed)
    assume(any(request.prefix for request in instance.requests))
    inner = RandomPolicy(rng) if policy == "random" else named(policy, instance, budget_tokens=rng.choice([64, 2048]))
    watched = WatchedPolicy(inner)
    run = simulate(instance, watched, replace(CACHED, acceptance=rng.choice([0.0, 0.5])))
    assert run.evaluation.violations == ()
    for i, request in enumerate(instance.requests):
        job = watched.jobs.get(request.id)
        assert job is None or run.evaluation.attained[i] == (job.done and not job.missed and job.value > 0)
    best = found_at_best(instance, run)
    roomy = instance.engine.kv_blocks == 4000
    for i, blocks in enumerate(best):
        hit = run.schedule.cached.get(i, 0)
        assert hit % BLOCK == 0
        assert hit == blocks * BLOCK if roomy else hit <= blocks * BLOCK


def test_the_random_runs_find_and_forget():
    """Guard: prefixes are found, and in a small cache some are gone again."""
    found = forgotten = 0
    for seed in range(60):
        _, instance = shared(seed)
        run = simulate(instance, named("vllm-fcfs", instance), CACHED)
        found += sum(run.schedule.cached.values())
        forgotten += sum(found_at_best(instance, run)) * BLOCK - sum(run.schedule.cached.values())
    assert found > 5000
    assert forgotten > 500


def spaced(prefixes: list[tuple[int, ...]], kv_blocks: int, prompt: int = 2 * BLOCK + 8) -> Instance:
    """One request a second, each over before the next comes."""
    requests = tuple(
        Request(f"r{i}", float(i), (Stage(prompt, 2, "chat"),), Prefix(BLOCK, ids) if ids else None)
        for i, ids in enumerate(prefixes)
    )
    engine = replace(engine_named("llama-3-8b-a100"), block_size_tokens=16, kv_blocks=kv_blocks)
    return Instance("spaced", requests, CHAT, engine)


def hits(instance: Instance, options: SimulationOptions = CACHED) -> list[int]:
    cached = simulate(instance, named("vllm-fcfs", instance), options).schedule.cached
    return [cached.get(i, 0) // BLOCK for i in range(len(instance.requests))]


def test_a_repeated_prompt_is_found_and_without_the_option_it_is_not():
    instance = spaced([(1, 2), (1, 2), (1, 3), (4,), ()], kv_blocks=100)
    assert hits(instance) == [0, 2, 1, 0, 0]
    assert hits(instance, SimulationOptions()) == [0] * 5


def test_the_least_recently_freed_goes_first_and_of_a_prompt_its_end():
    # A prompt takes 5 KV blocks (73 tokens) and leaves two hashed blocks of 2 KV blocks each; 9 hold one prompt that
    # runs and two hashed blocks of another.
    assert hits(spaced([(1, 2), (3, 4), (1, 2)], kv_blocks=9)) == [0, 0, 2]
    assert hits(spaced([(1, 2), (3, 4), (5, 6), (1, 2)], kv_blocks=9)) == [0, 0, 0, 0]
    assert hits(spaced([(1, 2), (3, 4), (5, 6), (3, 4)], kv_blocks=9)) == [0, 0, 0, 2]
    assert hits(spaced([(1, 2), (3, 4), (1, 2)], kv_blocks=8)) == [0, 0, 1]
    # What was found anew counts as recent.
    assert hits(spaced([(1, 2), (3, 4), (1, 2), (5, 6), (1, 2)], kv_blocks=14)) == [0, 0, 2, 0, 2]


def test_a_prompt_that_is_held_entirely_computes_a_token():
    assert hits(spaced([(1, 2), (1, 2)], kv_blocks=100, prompt=2 * BLOCK)) == [0, 1]


def test_deadlines_are_those_promised_without_a_cache():
    instance = replace(
        spaced([(1, 2), (1, 2)], kv_blocks=100), slo_classes={"chat": SloClass("chat", 100.0, ttft_slowdown=3.0)}
    )
    run = simulate(instance, named("vllm-fcfs", instance), CACHED)
    first, again = (stages[0] for stages in run.evaluation.stages)
    assert first.first_due_s - first.release_s == pytest.approx(again.first_due_s - again.release_s)
    assert again.first_token_s - again.release_s < first.first_token_s - first.release_s


@pytest.mark.parametrize("claim", [-1, 2 * BLOCK + 1, 10_000])
def test_the_checker_refuses_what_no_cache_can_hold(claim):
    instance = spaced([(1, 2), (1, 2)], kv_blocks=100)
    run = simulate(instance, named("vllm-fcfs", instance), CACHED)
    spoiled = replace(run.schedule, cached={1: claim})
    assert "cached-tokens" in {violation.rule for violation in evaluate(instance, spoiled).violations}


def test_a_trace_without_prefixes_is_refused():
    with pytest.raises(InvalidInputError, match="no request says what its prompt begins with"):
        hits(spaced([(), ()], kv_blocks=100))


def test_blocks_must_fit_those_of_the_engine():
    instance = spaced([(1, 2), (1, 2)], kv_blocks=100)
    odd = replace(instance, engine=replace(instance.engine, block_size_tokens=24))
    with pytest.raises(InvalidInputError, match="a multiple of the 24 tokens"):
        simulate(odd, named("vllm-fcfs", odd), CACHED)


@pytest.mark.parametrize(
    ("prefix", "stage"),
    [(Prefix(32, (1, 2, 3)), Stage(95, 1, "chat")), (Prefix(32, (1,)), Stage(95, 1, "chat", cached_tokens=5))],
)
def test_a_prefix_lies_in_the_first_prompt(prefix, stage):
    with pytest.raises(InvalidInputError, match="must lie in the first prompt"):
        Request("a", 0.0, (stage,), prefix)


def test_mooncake_rows_keep_their_blocks_through_files_and_merges(tmp_path):
    rows = [(0, 1500, [1, 2, 3]), (60_000, 1600, [1, 2, 9]), (120_000, 1024, [1, 2]), (180_000, 300, [7])]
    lines = [
        json.dumps({"timestamp": ms, "input_length": prompt, "output_length": 4, "hash_ids": ids})
        for ms, prompt, ids in rows
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    trace = read_trace(tmp_path / "m.jsonl", scenario="chatbot", engine="llama-3-8b-a100")
    whole = [Prefix(512, (1, 2)), Prefix(512, (1, 2, 9)), Prefix(512, (1, 2)), None]
    assert [request.prefix for request in trace.requests] == whole
    write_trace(trace, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json").requests == trace.requests
    # With time and room for everything, the cache finds what an infinite one holds, in whole blocks.
    run = simulate(trace.to_instance(), named("vllm-fcfs", trace.to_instance()), CACHED)
    assert run.schedule.cached == {1: 1024, 2: 512}
    both = merge("both", [trace, replace(trace, name="other")])
    ids = [set(request.prefix.blocks) for request in both.requests if request.prefix is not None]
    assert [len(a & b) for a, b in zip(ids[::2], ids[1::2], strict=True)] == [0, 0, 0]
