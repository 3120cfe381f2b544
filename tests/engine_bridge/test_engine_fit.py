"""Fits of the engine model: known coefficients are found again, noise and stalls do little, silence is admitted."""

import csv
import gzip
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_batches import mixed_batch, run_batches, seconds_of

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.engine_fit import fit_engine
from slo_opt.engine_bridge.nonnegative import solve_nonnegative

COSTS = st.floats(1e-9, 1e-3)


@st.composite
def engines(draw: st.DrawFn) -> EngineModel:
    """One or two pieces that both matter, and shared costs that matter at the contexts of `mixed_batch`."""
    base = draw(st.floats(1e-3, 5e-2))
    slow = base / draw(st.floats(200, 2000))
    pieces = [RooflinePiece(slow, base / 5)]
    if draw(st.booleans()):
        pieces.append(RooflinePiece(slow / 20, base))
    return EngineModel(
        "drawn",
        "drawn",
        tuple(pieces),
        decode_context_s=base * draw(st.floats(1e-6, 1e-5)),
        prefill_pair_s=base * draw(st.floats(1e-7, 1e-6)),
        request_s=base * draw(st.floats(0, 1e-2)),
        host_s=draw(st.floats(0, 5e-3)),
    )


def relative_errors(found: EngineModel, true: EngineModel, seed: int) -> np.ndarray:
    """On batches that the fit has not seen."""
    rng = random.Random(seed)
    batches = [mixed_batch(rng) for _ in range(200)]
    return np.array([abs(seconds_of(found, b) / seconds_of(true, b) - 1) for b in batches])


@settings(max_examples=25, deadline=None)
@given(true=engines(), template=st.sampled_from(sorted(ENGINES)), seed=st.integers(0, 1000))
def test_an_engine_without_noise_is_found_again(true: EngineModel, template: str, seed: int):
    fit = fit_engine(list(run_batches(true, 400, seed)), engine_named(template))
    errors = relative_errors(fit.engine, true, seed + 1)
    assert np.median(errors) < 0.01
    assert np.quantile(errors, 0.95) < 0.05
    assert fit.num_samples == 400
    assert fit.r2 > 0.99


@settings(max_examples=15, deadline=None)
@given(true=engines(), seed=st.integers(0, 1000))
def test_noise_and_stalls_do_little(true: EngineModel, seed: int):
    samples = list(run_batches(true, 600, seed, noise=0.1, stall_every=50))
    fit = fit_engine(samples, engine_named("llama-70b-tp4-a100"))
    errors = relative_errors(fit.engine, true, seed + 1)
    assert np.median(errors) < 0.04
    assert np.quantile(errors, 0.95) < 0.25  # a piece that rules few of the batches is seen through noise
    assert fit.worst_ratio > 5  # the stalls are still told
    assert 0.97 < fit.p50_ratio < 1.03


def test_coefficients_are_those_of_the_engine():
    true = engine_named("llama-3-8b-h100")
    fit = fit_engine(list(run_batches(true, 800, 7, noise=0.02)), engine_named("opt-6.7b-a100"), name="mine")
    assert fit.shape == "two pieces"
    engine = fit.engine
    assert engine.name == "mine"
    found = sorted((piece.per_token_s, piece.base_s) for piece in engine.pieces)
    wanted = sorted((piece.per_token_s, piece.base_s + true.host_s) for piece in true.pieces)
    for (k, b), (k_true, b_true) in zip(found, wanted, strict=True):
        assert k == pytest.approx(k_true, rel=0.15)
        assert b == pytest.approx(b_true, rel=0.1)
    assert engine.decode_context_s == pytest.approx(true.decode_context_s, rel=0.1)
    assert engine.prefill_pair_s == pytest.approx(true.prefill_pair_s, rel=0.1)
    assert fit.unidentified == ("per_draft_step_s",)
    assert engine.host_s == 0


def test_draft_steps_are_fitted_where_they_vary():
    true = engine_named("opt-6.7b-a100-draft")
    fit = fit_engine(list(run_batches(true, 600, 3, draft_steps=5)), engine_named("opt-6.7b-a100"))
    assert "per_draft_step_s" in fit.identified
    rng = random.Random(9)
    batches = [mixed_batch(rng, draft_steps=5) for _ in range(200)]
    errors = [abs(seconds_of(fit.engine, b) / seconds_of(true, b) - 1) for b in batches]
    assert np.median(errors) < 0.01


@settings(max_examples=25, deadline=None)
@given(
    true=st.sampled_from(sorted(ENGINES)),
    template=st.sampled_from(sorted(ENGINES)),
    decodes=st.integers(1, 200),
    factor=st.floats(0.05, 50),
)
def test_what_the_batches_do_not_tell_stays_with_the_template(true: str, template: str, decodes: int, factor: float):
    """One batch over and over tells the speed and nothing else: all else is the template's times that."""
    known = engine_named(template)
    batch = BatchSample(decodes, 800.0 * decodes, 0.0, decodes)
    seconds = factor * seconds_of(engine_named(true), batch)
    fit = fit_engine([batch.timed(seconds)] * 100, known)
    assert fit.shape == "scaled template"
    assert not fit.identified
    assert seconds_of(fit.engine, batch) == pytest.approx(seconds)
    scale = seconds / seconds_of(known, batch)
    for other in (BatchSample(2000, 0, 2e6, 1), BatchSample(300, 5e5, 0, 300), BatchSample(1, 10, 0, 1)):
        assert seconds_of(fit.engine, other) == pytest.approx(scale * seconds_of(known, other))


def test_past_the_largest_batch_tokens_do_not_become_cheap():
    """Decodes alone show the flat, memory-bound part; a prompt of 4,000 tokens must not be taken for free."""
    true = engine_named("llama-3-8b-h100")
    rng = random.Random(1)
    samples = []
    for _ in range(300):
        decodes = rng.randint(1, 64)
        batch = BatchSample(decodes, 500.0 * decodes, 0.0, decodes)
        samples.append(batch.timed(seconds_of(true, batch)))
    fit = fit_engine(samples, engine_named("llama-3-8b-a100"))
    prompt = BatchSample(4000, 0, 8e6, 1)
    assert seconds_of(fit.engine, prompt) > seconds_of(true, prompt)
    assert all(seconds_of(fit.engine, s) == pytest.approx(s.seconds, rel=0.02) for s in samples)


def test_limits_are_the_templates():
    true = engine_named("llama-70b-tp4-h100")
    fit = fit_engine(list(run_batches(true, 50, 1)), true)
    for field in ("block_size_tokens", "kv_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
        assert getattr(fit.engine, field) == getattr(true, field)


def test_a_few_batches_only_tell_the_speed():
    true = engine_named("opt-6.7b-a100")
    samples = [sample.timed(3 * sample.seconds) for sample in run_batches(true, 8, 1)]
    fit = fit_engine(samples, true)
    assert fit.shape == "scaled template"
    assert all(seconds_of(fit.engine, s) == pytest.approx(s.seconds) for s in samples)


def test_nothing_to_fit_to_is_refused():
    with pytest.raises(InvalidInputError, match="no batch"):
        fit_engine([BatchSample(0, seconds=1.0), BatchSample(5, seconds=float("nan"))], engine_named("opt-6.7b-a100"))


FINITE = st.floats(0, 1e18)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.builds(
            BatchSample,
            num_tokens=st.integers(1, 10**12),
            decode_context_tokens=FINITE,
            prefill_pairs=FINITE,
            num_requests=st.integers(0, 10**6),
            draft_steps=st.integers(0, 1000),
            seconds=st.floats(1e-7, 1e4),
        ),
        min_size=1,
        max_size=40,
    ),
    template=st.sampled_from(sorted(ENGINES)),
)
@pytest.mark.filterwarnings("error")
def test_nothing_finite_makes_it_fail(samples: list[BatchSample], template: str):
    usable = [sample for sample in samples if sample.usable]
    if usable:
        fit = fit_engine(samples, engine_named(template))
        assert fit.num_samples == len(usable)
        assert all(np.isfinite(seconds_of(fit.engine, sample)) for sample in usable)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), columns=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_nonnegative_least_squares_meets_its_conditions(data: st.DataObject, columns: int, seed: int):
    """Karush-Kuhn-Tucker: nothing negative, no gradient that a larger coefficient would follow, none on a used one."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((columns + 3, columns))
    normal = matrix.T @ matrix + 1e-6 * np.eye(columns)
    right = rng.standard_normal(columns) * data.draw(st.floats(1e-3, 1e3))
    found = solve_nonnegative(normal, right)
    gradient = right - normal @ found
    tolerance = 1e-6 * np.abs(right).max()
    assert (found >= 0).all()
    assert (gradient <= tolerance).all()
    assert (np.abs(gradient[found > 0]) <= tolerance).all()


DATA = Path(__file__).parents[3] / "shared" / "data" / "profiles"
PROFILES = {  # 95 % error of the published fit of the same form, and R2, on the rows marked as test
    "vidur_Llama-3-8B_tp1_a100": (0.0798, 0.9996),
    "aic_Llama-3-8B_tp1_h100": (0.0767, 0.9991),
    "vidur_Llama-2-70b_tp4_a100": (0.1355, 0.9987),
    "aic_Llama-3-70B_tp4_h100": (0.0727, 0.9988),
}


@pytest.mark.parametrize("name", PROFILES)
def test_batch_times_of_gpus_are_described_as_well_as_by_the_built_in_engines(name: str):
    path = DATA / f"iter_{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"the published batch times are not at hand (../shared/data/profiles/{path.name})")
    split: dict[str, list[BatchSample]] = {"train": [], "test": []}
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            requests = int(row["n_dec"]) + int(row["n_pf"])
            seconds = float(row["t_ms"]) / 1e3
            sample = BatchSample(
                int(row["tokens"]), float(row["ctx_dec"]), float(row["pf_pairs"]), requests, 0, seconds
            )
            split[row["split"]].append(sample)
    fit = fit_engine(split["train"], engine_named("opt-6.7b-a100"))
    actual = np.array([sample.seconds for sample in split["test"]])
    predicted = np.array([seconds_of(fit.engine, sample) for sample in split["test"]])
    p95, r2 = PROFILES[name]
    assert fit.shape == "two pieces"
    assert np.quantile(np.abs(predicted / actual - 1), 0.95) < 1.15 * p95
    assert 1 - ((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum() > r2 - 0.0005


def test_a_log_full_of_noisy_decodes_still_tells_what_prefill_costs():
    """As measured on a busy machine: 19 of 20 batches are small decodes, and many take several times their time."""
    true = EngineModel(
        "cpu", "by hand", (RooflinePiece(3e-4, 7e-3),), decode_context_s=2e-6, prefill_pair_s=1e-7, request_s=5e-4
    )
    rng = random.Random(4)
    samples = []
    for number in range(2400):
        decodes = rng.randint(1, 12)
        batch = BatchSample(decodes, decodes * rng.uniform(10, 2000), 0.0, decodes)
        if number % 20 == 0:
            batch = mixed_batch(rng, max_chunk=2000)
        slow = rng.choice((1, 1, 1, 1.5, 3, 10)) * math.exp(0.2 * rng.gauss(0, 1))
        samples.append(batch.timed(slow * seconds_of(true, batch)))
    fit = fit_engine(samples, EngineModel("live", "unknown", (RooflinePiece(5e-5, 1e-2),), max_num_batched_tokens=2048))
    assert fit.shape == "one piece"
    decode, prompt = BatchSample(8, 8000, 0, 8), BatchSample(1500, 0, 1.1e6, 1)
    ratio = seconds_of(fit.engine, prompt) / seconds_of(fit.engine, decode)
    assert ratio == pytest.approx(seconds_of(true, prompt) / seconds_of(true, decode), rel=0.35)
