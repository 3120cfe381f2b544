"""What slo-opt learns as it goes: margin, pace, typical slack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.margin import Margin
from slo_opt.policies.pace import Pace
from slo_opt.policies.typical_slack import TypicalSlack


@given(st.lists(st.floats(1e-3, 10.0), max_size=200))
def test_an_exact_model_needs_no_margin(times_s):
    margin = Margin()
    for seconds in times_s:
        margin.expect(seconds)
        margin.learn(seconds * (1 + 1e-12))  # rounding
        assert margin.factor == margin.beyond(9.0) == 1.0


@pytest.mark.parametrize(("deviations", "least", "most"), [(2.0, 0.03, 0.08), (4.0, 0.0, 0.02)])
@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.4])
def test_few_batches_exceed_the_margin_under_noise(sigma: float, deviations: float, least: float, most: float):
    margin, rng = Margin(), np.random.default_rng(1)
    over = factors = 0.0
    for k in range(6000):
        ratio = rng.lognormal(-(sigma**2) / 2, sigma)
        if k >= 1000:
            over += ratio > margin.beyond(deviations)
            factors += margin.beyond(deviations)
        margin.expect(0.05)
        margin.learn(0.05 * ratio)
    assert least <= over / 5000 < most
    assert factors / 5000 < 1 + deviations * sigma


def test_a_slow_engine_is_learned():
    margin = Margin()
    for _ in range(500):
        margin.expect(0.05)
        margin.learn(0.065)
    assert margin.factor == pytest.approx(1.3, abs=0.01)


def test_a_fast_engine_is_not_relied_upon():
    margin = Margin()
    for _ in range(500):
        margin.expect(0.05)
        margin.learn(0.03)
    assert margin.factor == 1.0


def test_only_batches_that_were_predicted_teach():
    margin = Margin()
    margin.learn(5.0)
    margin.expect(None)
    margin.learn(5.0)
    margin.expect(0.05)
    margin.learn(None)
    assert margin.factor == 1.0


def test_pace_is_never_slower_than_the_slo():
    pace = Pace()
    assert pace.of(0.05) == 0.05
    pace.expect(10, 10)
    pace.learn(0.08)
    assert pace.of(0.05) == 0.05
    assert pace.of(0.1) == 0.08


def test_pace_counts_the_batches_that_a_decode_sits_out():
    pace = Pace(memory=4)
    pace.expect(10, 5)
    pace.learn(0.02)
    assert pace.of(1.0) == pytest.approx(0.04)
    pace.expect(10, 10)
    pace.learn(0.02)
    assert pace.of(1.0) == pytest.approx(0.04 - 0.02 / 4)


def test_pace_learns_nothing_from_batches_without_decodes():
    pace = Pace()
    pace.expect(10, 0)
    pace.learn(9.0)
    pace.learn(None)
    assert pace.of(1.0) == 1.0


@given(
    st.lists(st.floats(-1.0, 5.0) | st.sampled_from([0.1, 0.2]), max_size=60),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    st.integers(1, 30),
)
def test_typical_slack_is_a_quantile_of_the_latest(slacks, quantile, window):
    typical = TypicalSlack(quantile, initial_s=9.0, window=window)
    assert typical.seconds == 9.0
    for k, slack_s in enumerate(slacks, start=1):
        typical.arrived(slack_s)
        latest = slacks[max(0, k - window) : k]
        assert typical.seconds == np.quantile(latest, quantile, method="lower")


def test_a_quantile_beyond_one_is_refused():
    with pytest.raises(InvalidInputError, match="quantile is 2"):
        TypicalSlack(2.0, 1.0)
