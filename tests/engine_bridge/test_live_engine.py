"""The live engine model: it learns, follows a slower engine, keeps its margin, and survives whatever it is shown."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic_batches import mixed_batch, run_batches, seconds_of

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.live_engine import LiveEngine
from slo_opt.engine_bridge.sample_window import SampleWindow

LIMITS = ("block_size_tokens", "kv_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len")
UNKNOWN = EngineModel("live", "unknown", (RooflinePiece(5e-5, 1e-2),), kv_blocks=900, max_num_batched_tokens=2048)
FACTORS = st.floats(0.2, 30)


def slower(engine: EngineModel, factor: float) -> EngineModel:
    """The engine with all times multiplied."""
    pieces = tuple(
        RooflinePiece(p.per_token_s * factor, p.base_s * factor, p.per_draft_step_s * factor) for p in engine.pieces
    )
    return replace(
        engine,
        pieces=pieces,
        decode_context_s=engine.decode_context_s * factor,
        prefill_pair_s=engine.prefill_pair_s * factor,
        request_s=engine.request_s * factor,
        host_s=engine.host_s * factor,
    )


def median_error(live: LiveEngine, true: EngineModel, seed: int) -> float:
    """Of the prediction without margin, on batches of all kinds."""
    rng = random.Random(seed)
    batches = [mixed_batch(rng) for _ in range(100)]
    return float(np.median([abs(live.predict_s(batch) / seconds_of(true, batch) - 1) for batch in batches]))


def learner(template: EngineModel = UNKNOWN, quantile: float = 0.9) -> LiveEngine:
    return LiveEngine(template, learn=True, recalibrate=True, quantile=quantile)


def test_before_any_batch_it_is_the_template():
    live = learner()
    assert live.engine is UNKNOWN
    assert live.margin == 1.0
    assert live.predict_s(BatchSample(100)) == UNKNOWN.batch_time_s(100)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(ENGINES)), factor=FACTORS, seed=st.integers(0, 1000))
def test_an_unknown_engine_is_learned(name: str, factor: float, seed: int):
    true = slower(engine_named(name), factor)
    live = learner()
    samples = list(run_batches(true, 600, seed, noise=0.05, stall_every=100))
    for sample in samples[:64]:
        live.observe(sample)
    assert median_error(live, true, seed) < 0.15
    for sample in samples[64:]:
        live.observe(sample)
    assert median_error(live, true, seed) < 0.05
    assert all(getattr(live.engine, field) == getattr(UNKNOWN, field) for field in LIMITS)


@example(name="llama-3-8b-a100", learn=False, factor=1.5, noise=0.1, seed=187)
@example(name="llama-3-8b-a100", learn=False, factor=0.5, noise=0.1, seed=35)
@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(ENGINES)),
    learn=st.booleans(),
    factor=st.sampled_from([0.5, 0.67, 1.5, 2.0]),
    noise=st.sampled_from([0.0, 0.05, 0.1]),
    seed=st.integers(0, 1000),
)
def test_a_change_of_speed_is_followed_within_128_batches(
    name: str, learn: bool, factor: float, noise: float, seed: int
):
    true = engine_named(name)
    live = LiveEngine(UNKNOWN if learn else true, learn=learn, recalibrate=True, quantile=0.9)
    for sample in run_batches(true, 500, seed, noise=noise, stall_every=90):
        live.observe(sample)
    changed = slower(true, factor)
    for sample in run_batches(changed, 128, seed + 1, noise=noise, stall_every=90):
        live.observe(sample)
    near = 0.01 + noise  # a fit to 128 batches; the change is by a third at least
    assert median_error(live, changed, seed) < near
    assert live.drifts >= 1
    for sample in run_batches(true, 128, seed + 2, noise=noise, stall_every=90):  # and back
        live.observe(sample)
    assert median_error(live, true, seed) < near


def test_a_pause_poisons_nothing():
    true = engine_named("llama-3-8b-h100")
    live = learner(true)
    for sample in run_batches(true, 600, 1, noise=0.03):
        live.observe(sample)
    before = median_error(live, true, 5)
    margin = live.margin
    live.observe(BatchSample(40, 40_000, 0, 40, seconds=30.0))
    for sample in run_batches(true, 400, 2, noise=0.03):
        live.observe(sample)
        assert live.margin < margin + 0.05
    assert median_error(live, true, 5) < max(0.02, 1.5 * before)


@settings(max_examples=15, deadline=None)
@given(quantile=st.sampled_from([0.5, 0.75, 0.9, 0.97]), noise=st.floats(0.05, 0.3), seed=st.integers(0, 1000))
def test_the_margin_covers_its_quantile(quantile: float, noise: float, seed: int):
    true = engine_named("llama-3-8b-a100")
    live = learner(quantile=quantile)
    samples = list(run_batches(true, 2000, seed, noise=noise))
    covered = []
    for number, sample in enumerate(samples):
        if number >= 800:
            covered.append(sample.seconds <= seconds_of(live.engine, sample))
        live.observe(sample)
    assert np.mean(covered) == pytest.approx(quantile, abs=0.05)


def test_a_margin_below_one_half_may_be_below_one():
    true = engine_named("opt-6.7b-a100")
    high, low = learner(quantile=0.5), learner(quantile=0.1)
    for sample in run_batches(true, 900, 4, noise=0.2):
        high.observe(sample)
        low.observe(sample)
        assert high.margin >= 1
    assert 0.5 <= low.margin < 0.9


def test_a_model_that_is_too_slow_is_mended_by_the_refit():
    true = engine_named("llama-3-8b-h100")
    live = LiveEngine(slower(true, 3.0), learn=False, recalibrate=True, quantile=0.9)
    for sample in run_batches(true, 64, 4):
        live.observe(sample)
    assert median_error(live, true, 1) < 0.02
    assert live.margin < 1.05


def test_without_recalibration_only_the_margin_moves():
    true = engine_named("llama-3-8b-h100")
    live = LiveEngine(true, learn=False, recalibrate=False, quantile=0.9)
    for sample in run_batches(slower(true, 1.5), 400, 4):
        live.observe(sample)
    assert live.predict_s(BatchSample(64, 3000, 0, 64)) == seconds_of(true, BatchSample(64, 3000, 0, 64))
    assert live.margin == pytest.approx(1.5)
    assert live.refits == live.drifts == 0


def test_learning_without_recalibration_ends():
    true = engine_named("llama-3-8b-h100")
    live = LiveEngine(UNKNOWN, learn=True, recalibrate=False, quantile=0.9)
    for sample in run_batches(true, 600, 4):
        live.observe(sample)
    assert median_error(live, true, 1) < 0.03
    plain, refits = live.plain, live.refits
    for sample in run_batches(slower(true, 2.0), 600, 5):
        live.observe(sample)
    assert live.plain is plain
    assert live.refits == refits
    assert live.margin == pytest.approx(2.0, abs=0.1)


def test_the_engine_is_one_object_until_it_changes():
    true = engine_named("llama-3-8b-h100")
    live = LiveEngine(true, learn=False, recalibrate=False, quantile=0.9)
    seen = set()
    for sample in run_batches(true, 300, 4, noise=0.001):
        live.observe(sample)
        seen.add(id(live.engine))
    assert seen == {id(true)}


def test_equal_batches_give_equal_models():
    true = engine_named("llama-70b-tp4-a100")
    models = []
    for _ in range(2):
        live = learner()
        for sample in run_batches(true, 700, 11, noise=0.1, stall_every=40):
            live.observe(sample)
        models.append((live.engine, live.margin, live.refits))
    assert models[0] == models[1]


def test_an_hour_of_decodes_does_not_forget_prefill():
    true = engine_named("llama-3-8b-h100")
    live = learner()
    for sample in run_batches(true, 400, 1, noise=0.05):
        live.observe(sample)
    rng = random.Random(2)
    for _ in range(4000):
        decodes = rng.randint(28, 32)
        batch = BatchSample(decodes, 700.0 * decodes, 0.0, decodes)
        live.observe(batch.timed(seconds_of(true, batch) * math.exp(0.05 * rng.gauss(0, 1))))
    prompt = BatchSample(3000, 0.0, 4.5e6, 1)
    assert live.predict_s(prompt) == pytest.approx(seconds_of(true, prompt), rel=0.1)


WILD = st.builds(
    BatchSample,
    num_tokens=st.integers(-(10**15), 10**15),
    decode_context_tokens=st.floats(),
    prefill_pairs=st.floats(),
    num_requests=st.integers(-100, 10**9),
    draft_steps=st.integers(-100, 10**6),
    seconds=st.floats(),
)
FINITE = st.builds(
    BatchSample,
    num_tokens=st.integers(1, 10**12),
    decode_context_tokens=st.floats(0, 1e15),
    prefill_pairs=st.floats(0, 1e15),
    num_requests=st.integers(0, 10**6),
    draft_steps=st.integers(0, 1000),
    seconds=st.floats(1e-7, 1e4),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(FINITE | WILD, max_size=60),
    repeats=st.integers(1, 8),
    template=st.sampled_from([UNKNOWN, *ENGINES.values()]),
    learn=st.booleans(),
    recalibrate=st.booleans(),
    quantile=st.floats(0.01, 1),
)
def test_nothing_makes_it_fail(
    samples: list[BatchSample], repeats: int, template: EngineModel, learn: bool, recalibrate: bool, quantile: float
):
    live = LiveEngine(template, learn=learn, recalibrate=recalibrate, quantile=quantile)
    for sample in samples * repeats:
        live.observe(sample)
        assert 0.5 <= live.margin <= 3
        assert 0 < seconds_of(live.engine, BatchSample(100, 1e4, 1e4, 10)) < math.inf
    assert live.ignored == repeats * sum(not sample.usable for sample in samples)


@pytest.mark.parametrize("quantile", [0, -0.5, 1.01, math.nan])
def test_a_quantile_that_means_nothing_is_refused(quantile: float):
    with pytest.raises(InvalidInputError, match="quantile"):
        learner(quantile=quantile)


@settings(max_examples=50, deadline=None)
@given(samples=st.lists(FINITE, max_size=120), recent=st.integers(1, 20), kinds=st.integers(1, 4))
def test_the_window_is_bounded_and_keeps_the_latest(samples: list[BatchSample], recent: int, kinds: int):
    window = SampleWindow(recent, kinds, per_kind=2)
    for sample in samples:
        window.add(sample)
    rows = window.rows()
    assert len(set(rows.tolist())) == len(rows) <= recent + 2 * kinds
    seconds = window.table(rows)[:, -1].tolist()
    latest = [sample.seconds for sample in samples[-recent:]]
    assert seconds[len(seconds) - len(latest) :] == latest
    assert set(seconds) <= {sample.seconds for sample in samples}
