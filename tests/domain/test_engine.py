"""Batch time, its inverse, and the built-in engines against their sources."""

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece, prefill_pairs
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError

FITS = Path(__file__).parents[2] / "../shared/data/profiles/fit_coefficients.csv"
COST = st.floats(0, 1e-3)
ENGINE = st.builds(
    EngineModel,
    name=st.just("any"),
    source=st.just("drawn"),
    pieces=st.lists(
        st.builds(RooflinePiece, st.floats(1e-6, 1e-3), st.floats(0, 0.1), COST), min_size=1, max_size=3
    ).map(tuple),
    decode_context_s=st.floats(0, 1e-6),
    prefill_pair_s=st.floats(0, 1e-8),
    request_s=COST,
    host_s=st.floats(0, 0.01),
    block_size_tokens=st.integers(1, 64),
    max_num_batched_tokens=st.integers(1, 10_000),
)


def test_batch_time_by_hand():
    engine = EngineModel("x", "y", (RooflinePiece(1.0, 10.0, 2.0), RooflinePiece(3.0, 1.0, 0.0)), 0.25, 0.5, 4.0, 100.0)
    assert engine.batch_time_s(3) == 13 + 100
    assert engine.batch_time_s(6) == 19 + 100
    assert engine.batch_time_s(3, draft_steps=4) == 21 + 100
    terms = engine.batch_time_s(6, decode_context_tokens=8, prefill_pairs=6, num_requests=2)
    assert terms == 19 + 0.25 * 8 + 0.5 * 6 + 4 * 2 + 100


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_pairs_are_counted_token_by_token_and_add_up(chunk, past, more):
    assert prefill_pairs(chunk, past) == sum(range(past + 1, past + chunk + 1))
    assert prefill_pairs(chunk, past) + prefill_pairs(more, past + chunk) == prefill_pairs(chunk + more, past)


@given(ENGINE, st.floats(0, 2), st.integers(0, 100_000), st.integers(0, 300), st.integers(0, 8))
def test_max_tokens_within_is_the_inverse(engine, seconds, context, requests, drafts):
    given_ = {"decode_context_tokens": context, "num_requests": requests, "draft_steps": drafts}
    most = engine.max_tokens_within(seconds, **given_)
    assert 0 <= most <= engine.max_num_batched_tokens
    if most:
        assert engine.batch_time_s(most, **given_) <= seconds + 1e-9
    if most < engine.max_num_batched_tokens:
        assert engine.batch_time_s(most + 1, **given_) > seconds - 1e-9


def test_max_tokens_within_of_the_paper():
    """SLOs-Serve, OPT-6.7B on A100: 366 tokens within 50 ms, 1,093 within 100 ms."""
    engine = engine_named("opt-6.7b-a100")
    assert engine.max_tokens_within(0.050) == 366
    assert engine.max_tokens_within(0.100) == 1093
    assert engine.max_tokens_within(0.020) == 0


@given(ENGINE, st.integers(1, 30_000), st.integers(0, 5_000), st.integers(0, 2**32))
def test_least_prefill_is_below_any_cut(engine, prompt, cached, seed):
    least = engine.least_prefill_s(prompt, cached)
    assert least <= engine.zero_load_ttft_s(prompt, cached) * (1 + 1e-9)
    state, done, total = seed, 0, 0.0
    while done < prompt:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        chunk = min(prompt - done, 1 + (state >> 33) % engine.max_num_batched_tokens)
        total += engine.batch_time_s(chunk, prefill_pairs=prefill_pairs(chunk, cached + done), num_requests=1)
        done += chunk
    assert least <= total * (1 + 1e-9)
    if prompt <= engine.max_num_batched_tokens:
        assert least == pytest.approx(engine.zero_load_ttft_s(prompt, cached))


@given(ENGINE, st.integers(0, 10_000))
def test_least_step(engine, context):
    step_s = engine.batch_time_s(1, decode_context_tokens=context, num_requests=1)
    assert engine.least_step_s(context) == min(step_s, engine.least_prefill_s(context + 1))


def test_zero_load_ttft():
    engine = EngineModel("x", "y", (RooflinePiece(1.0, 10.0),), prefill_pair_s=1.0, max_num_batched_tokens=4)
    assert engine.zero_load_ttft_s(3) == 13 + 6
    assert engine.zero_load_ttft_s(6, cached_tokens=1) == 14 + (2 + 3 + 4 + 5) + 12 + (6 + 7)
    assert engine.zero_load_ttft_s(0) == 0


def test_kv_blocks():
    engine = engine_named("llama-3-8b-a100")
    assert [engine.kv_blocks_for(tokens) for tokens in (0, 1, 16, 17, 160)] == [0, 1, 1, 2, 10]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("pieces", (), "no roofline piece"),
        ("pieces", (RooflinePiece(0.0, 1.0),), "cost time for each token"),
        ("pieces", (RooflinePiece(math.nan, 1.0),), "seconds in"),
        ("decode_context_s", -1e-9, "seconds in"),
        ("host_s", math.inf, "seconds in"),
        ("prefill_pair_s", 1e4, "seconds in"),
        ("kv_blocks", 0, "kv_blocks is 0"),
        ("block_size_tokens", -16, "block_size_tokens is -16"),
        ("max_num_batched_tokens", 0, "max_num_batched_tokens"),
        ("max_num_seqs", 0, "max_num_seqs"),
        ("max_model_len", 1 << 41, "max_model_len"),
    ],
)
def test_bad_engines_are_refused(field, value, says):
    fields = {"name": "x", "source": "y", "pieces": (RooflinePiece(1.0, 1.0),), field: value}
    with pytest.raises(InvalidInputError, match=says):
        EngineModel(**fields)


def test_unknown_engine_suggests_one():
    with pytest.raises(InvalidInputError, match=r"Did you mean 'llama-3-8b-a100'\?.*opt-6\.7b-a100"):
        engine_named("llama3-8b-a100")


def test_engines_name_their_source():
    assert len(ENGINES) == 6
    for name, engine in ENGINES.items():
        assert engine.name == name
        assert len(engine.source) > 20


@pytest.mark.parametrize(
    ("name", "family", "model", "tensor_parallel", "gpu"),
    [
        ("llama-3-8b-a100", "vidur", "Llama-3-8B", "1", "a100"),
        ("llama-3-8b-h100", "aic", "Llama-3-8B", "1", "h100"),
        ("llama-70b-tp4-a100", "vidur", "70b", "4", "a100"),
        ("llama-70b-tp4-h100", "aic", "70b", "4", "h100"),
    ],
)
def test_figures_are_those_of_the_fit(name, family, model, tensor_parallel, gpu):
    if not FITS.exists():
        pytest.skip("the fitted coefficients are not beside this checkout")
    with FITS.open(newline="") as file:
        (row,) = [
            row
            for row in csv.DictReader(file)
            if row["family"] == family
            and model.lower() in row["model"].lower()
            and (row["tp"], row["gpu"], row["form"], row["K"]) == (tensor_parallel, gpu, "pairs", "2")
        ]
    engine = engine_named(name)
    figures = [value for piece in engine.pieces for value in (piece.per_token_s, piece.base_s)]
    columns = ("k1_ms_per_token", "b1_ms", "k2_ms_per_token", "b2_ms")
    assert figures == pytest.approx([float(row[column]) / 1e3 for column in columns], rel=1e-4)
    assert engine.decode_context_s == pytest.approx(float(row["c_dec_ms_per_ctx_token"]) / 1e3, rel=1e-4)
    assert engine.prefill_pair_s == pytest.approx(float(row["c_pf_ms_per_pair"]) / 1e3, rel=1e-4)
    assert engine.request_s == pytest.approx(float(row["r_ms_per_request"]) / 1e3, rel=1e-4, abs=1e-9)
    assert engine.host_s == 0.004
    assert f"R2 {float(row['r2_test']):.4f}" in engine.source


def test_figures_of_opt():
    engine = engine_named("opt-6.7b-a100")
    assert engine.pieces == (RooflinePiece(6.878e-5, 2.480e-2), RooflinePiece(7.523e-5, 3.033e-3))
    assert engine.max_model_len == 2048
    # 80 GiB at 90 %, 12.4 GiB of weights, 2 GiB of activations; 32 layers x 2 x 4096 x 2 bytes = 512 KiB a token.
    assert engine.kv_blocks == int((72 - 2 - 12.4) * 1024**2 / 512 / 16)


def test_a_draft_model_costs_time_a_step_and_memory():
    plain, draft = engine_named("opt-6.7b-a100"), engine_named("opt-6.7b-a100-draft")
    rates = [(piece.per_token_s, piece.base_s) for piece in plain.pieces]
    assert [(piece.per_token_s, piece.base_s) for piece in draft.pieces] == rates
    assert draft.batch_time_s(300) == plain.batch_time_s(300) == pytest.approx(0.045434)
    # Three drafted tokens: the first piece 45.438 ms, the second 25.602 + 3 * 3.465 ms.
    assert draft.batch_time_s(300, draft_steps=3) == pytest.approx(0.045437747)
    # With 600 tokens: 66.072 against 48.171 + 3 * 3.465; with 8 steps the second piece is the longer one.
    assert draft.batch_time_s(600, draft_steps=8) == pytest.approx(0.048171 + 8 * 3.465e-3)
    # 125 million weights of 2 bytes are a quarter of a GiB: 32 blocks of 16 tokens and 512 KiB a token.
    assert plain.kv_blocks - draft.kv_blocks == 32
