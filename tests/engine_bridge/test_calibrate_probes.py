"""What a client sees of an engine that is known exactly gives that engine back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_batches import seconds_of

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.calibrate import GENERIC, calibrate
from slo_opt.engine_bridge.calibrate_probes import Probes, Stream, joined_sample, overhead_s, samples_of
from slo_opt.engine_bridge.calibrate_server import Sweep, cache_labels, sweep_for, tokens_in


def served(engine: EngineModel, arrivals: list[tuple[float, int, int]], delay_s: float) -> list[Stream]:
    """Requests as their clients see them: whoever has arrived is prefilled whole beside all decodes.

    Parameters
    ----------
    engine : EngineModel
        That runs.
    arrivals : list of (float, int, int)
        Time of sending, prompt tokens, output tokens.
    delay_s : float
        On the way to the engine.
    """
    now_s, times = 0.0, [[] for _ in arrivals]
    while any(len(got) < wanted for got, (_, _, wanted) in zip(times, arrivals, strict=True)):
        ready = [k for k, (sent_s, _, n) in enumerate(arrivals) if sent_s + delay_s <= now_s and len(times[k]) < n]
        if not ready:
            now_s = min(s + delay_s for k, (s, _, n) in enumerate(arrivals) if len(times[k]) < n)
            continue
        decodes = [k for k in ready if times[k]]
        prompts = [arrivals[k][1] for k in ready if not times[k]]
        now_s += engine.batch_time_s(
            len(decodes) + sum(prompts),
            decode_context_tokens=sum(arrivals[k][1] + len(times[k]) - 1 for k in decodes),
            prefill_pairs=sum(prefill_pairs(tokens, 0) for tokens in prompts),
            num_requests=len(ready),
        )
        for k in ready:
            times[k].append(now_s)
    return [Stream(prompt, sent_s, tuple(got)) for (sent_s, prompt, _), got in zip(arrivals, times, strict=True)]


def swept(engine: EngineModel, sweep: Sweep, delay_s: float) -> Probes:
    """A whole sweep of such an engine."""
    alone = [served(engine, [(0.0, p, 1)], delay_s)[0] for p in sweep.prompt_tokens for _ in range(sweep.repeats)]
    together, joined = [], []
    for count in sweep.decodes:
        for context in sweep.context_tokens:
            together.append(tuple(served(engine, [(0.0, context, sweep.output_tokens)] * count, delay_s)))
        for prompt in sweep.prompt_tokens[1:]:
            context = sweep.context_tokens[0]
            later_s = served(engine, [(0.0, context, sweep.output_tokens)] * count, delay_s)[0].token_s[5] + 1e-4
            group = [(0.0, context, sweep.output_tokens)] * count
            *decodes, joiner = served(engine, [*group, (later_s, prompt, 1)], delay_s)
            joined.append((tuple(decodes), joiner))
    return Probes(tuple(alone), tuple(together), tuple(joined))


@pytest.mark.parametrize("name", ["llama-3-8b-h100", "llama-3-8b-a100", "opt-6.7b-a100", "llama-70b-tp4-h100"])
@pytest.mark.parametrize("delay_s", [0.0, 0.008])
def test_a_sweep_gives_the_engine_back(name: str, delay_s: float):
    engine = engine_named(name)
    sweep = sweep_for(2048, engine.max_model_len, engine.max_num_seqs, None)
    probes = swept(engine, sweep, delay_s)
    assert overhead_s(probes) == pytest.approx(delay_s, abs=5e-4)
    found = calibrate(samples_of(probes), GENERIC, name="found")
    assert {row.kind for row in found.kinds} == {"decode", "prefill", "mixed"}
    assert sum(row.batches for row in found.kinds) == len(found.samples) == found.fit.num_samples
    assert found.fit.median_error < 0.01
    for batch in (
        BatchSample(20, 20 * 700.0, 0, 20),
        BatchSample(1200, 0, prefill_pairs(1200, 0), 1),
        BatchSample(820, 20 * 300.0, prefill_pairs(800, 0), 21),
    ):
        assert seconds_of(found.fit.engine, batch) == pytest.approx(seconds_of(engine, batch), rel=0.05)


def test_the_mixed_batch_is_the_one_with_the_prompt():
    engine = engine_named("llama-3-8b-h100")
    group = [(0.0, 100, 40)] * 3
    *decodes, joiner = served(engine, [*group, (0.2, 900, 1)], 0.004)
    found = joined_sample(decodes, joiner)
    assert found is not None
    assert (found.num_tokens, found.num_requests) == (903, 4)
    assert found.seconds == pytest.approx(seconds_of(engine, found), rel=0.002)


def test_a_prompt_that_comes_when_a_decode_has_ended_tells_nothing():
    engine = engine_named("llama-3-8b-h100")
    *decodes, joiner = served(engine, [(0.0, 100, 5), (0.0, 100, 40), (0.3, 900, 1)], 0.0)
    assert joined_sample(decodes, joiner) is None


def test_the_overhead_is_not_guessed():
    lone = Stream(10, 0.0, (0.02, 0.03, 0.04))
    first = Stream(1, 0.0, (0.015,))
    assert overhead_s(Probes((), ((lone,),), ())) is None
    assert overhead_s(Probes((first,), (), ())) is None
    assert overhead_s(Probes((first,), ((Stream(10, 0.0, (0.02,)),),), ())) is None
    assert overhead_s(Probes((first,), ((lone,),), ())) == pytest.approx(0.005)
    fast = Stream(1, 0.0, (0.001,))
    assert overhead_s(Probes((fast,), ((lone,),), ())) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    batched=st.integers(8, 1 << 20),
    longest=st.integers(16, 1 << 20),
    seqs=st.integers(1, 4096),
    kv=st.none() | st.integers(2000, 1 << 30),
)
def test_a_sweep_stays_within_the_limits(batched: int, longest: int, seqs: int, kv: int | None):
    sweep = sweep_for(batched, longest, seqs, kv)
    assert all(1 <= tokens <= min(batched, longest - 1) for tokens in sweep.prompt_tokens)
    assert all(tokens >= 2 and tokens + sweep.output_tokens <= longest for tokens in sweep.context_tokens)
    assert all(1 <= count <= seqs for count in sweep.decodes)
    assert sweep.output_tokens >= 4
    assert sweep.prompt_tokens[0] == 1
    assert list(sweep.prompt_tokens) == sorted(set(sweep.prompt_tokens))


def test_an_engine_without_room_is_refused():
    with pytest.raises(InvalidInputError, match="no room"):
        sweep_for(2048, 9, 1, None)


METRICS = """# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="1024",prefix="a\\"b,c"} 1.0
"""


def test_labels_of_the_cache_are_read():
    labels = cache_labels(METRICS)
    assert (labels["block_size"], labels["num_gpu_blocks"]) == ("32", "1024")
    assert cache_labels("vllm:num_requests_running 0.0") == {}


@given(text=st.text(max_size=200))
def test_any_metrics_are_read_without_harm(text: str):
    assert isinstance(cache_labels(text + "\nvllm:cache_config_info{" + text), dict)


def test_lines_of_a_stream():
    assert tokens_in(b'data: {"choices": [{"text": ""}]}\n') == 1
    assert tokens_in(b'data: {"choices": [{"text": "ab", "token_ids": [4, 5]}]}') == 2
    assert tokens_in(b'data: {"choices": [{"text": "", "token_ids": [], "finish_reason": "length"}]}') == 0
    assert tokens_in(b'data: {"choices": [{"text": "a", "token_ids": null}]}') == 1
    for line in (b'data: {"choices": [], "usage": {}}', b"data: [DONE]", b": comment", b"\n", b'data: {"choices": 3}'):
        assert tokens_in(line) == 0
    for line in (b'data: {"error": {"message": "no"}}', b"data: {", b"data: 3"):
        with pytest.raises(InvalidInputError):
            tokens_in(line)
