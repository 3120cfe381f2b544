"""How many replicas are needed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.ray_serve.demand import Demand, Interval, pressure
from slo_opt.engine_bridge.ray_serve.gauge import PressureGauge

PRESSURES = st.lists(st.floats(0, 2), min_size=1, max_size=20)
CURRENT = st.integers(1, 20)
HELD = st.floats(0, 100)
COUNTS = st.integers(0, 10_000).map(float)
INTERVALS = st.builds(
    Interval,
    COUNTS,
    st.floats(0, 1e4),
    COUNTS,
    COUNTS,
    st.floats(0, 1),
    st.floats(1e-3, 10) | st.just(math.inf),
)
CONFIG = BridgeConfig(
    classes={
        "chat": LiveClass("chat", ttft_ms=500, tpot_ms=50),
        "code": LiveClass("code", ttft_ms=500, tpot_ms=20),
        "batch": LiveClass("batch", best_effort=True),
    }
)


@pytest.mark.parametrize(
    ("pressures", "held", "current", "needed"),
    [
        ([], 0, 3, 3),  # nobody has told anything yet
        ([0.0, 0.0], 0, 2, 1),
        ([0.5], 0, 1, 1),
        ([0.95], 0, 1, 2),
        ([0.5], 1, 1, 2),  # somebody fits nowhere
        ([0.5, 0.5], 0, 2, 2),  # one would be at 1.0: above high
        ([0.31, 0.3], 0, 2, 2),  # one would be at 0.61: above low
        ([0.3, 0.3], 0, 2, 1),
        ([2.0, 2.0], 0, 2, 5),
    ],
)
def test_by_hand(pressures, held, current, needed):
    assert Demand(high=0.9, low=0.6).replicas_needed(pressures, held, current) == needed


@given(PRESSURES, HELD, CURRENT, st.floats(0, 2))
def test_more_pressure_never_needs_fewer(pressures, held, current, more):
    rule = Demand()
    needed = rule.replicas_needed(pressures, held, current)
    assert needed >= 1
    assert rule.replicas_needed([pressures[0] + more, *pressures[1:]], held, current) >= needed


@given(PRESSURES, HELD, CURRENT)
def test_so_many_are_enough_and_stay(pressures, held, current):
    rule = Demand()
    needed = rule.replicas_needed(pressures, held, current)
    assert sum(pressures) <= rule.high * needed + 1e-6
    if held >= 1:
        assert needed > len(pressures) or needed >= current
    if needed < current:
        assert sum(pressures) <= rule.low * needed + 1e-6


@given(INTERVALS)
def test_a_pressure_is_a_share_and_says_when_promises_were_not_made(interval):
    found = pressure(interval)
    assert found >= interval.kv_share
    assert math.isfinite(found)
    if interval.declined > 0:
        assert found > 1
    if not interval.declined and interval.tightest_tpot_s == math.inf:
        assert found == interval.kv_share


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.9, 0.6), (-1.0, 1.0), (math.nan, 1.0)])
def test_thresholds_that_mean_nothing_are_refused(low, high):
    with pytest.raises(InvalidInputError):
        Demand(high=high, low=low)


def metrics(batches=0.0, busy_s=0.0, admitted=0.0, declined=0.0, other=0.0, share=0.0):
    return (
        "# HELP slo_opt_batch_seconds measured\n"
        f"slo_opt_batch_seconds_sum {busy_s}\nslo_opt_batch_seconds_count {batches}\n"
        f'slo_opt_requests_total{{outcome="admitted",reason="on_time",slo="chat"}} {admitted}\n'
        f'slo_opt_requests_total{{outcome="best_effort",reason="unattainable",slo="chat"}} {declined}\n'
        f'slo_opt_requests_total{{outcome="best_effort",reason="no_slo",slo="default"}} {other}\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {share}\n'
    )


def test_a_gauge_reads_what_happened_since_it_was_read():
    gauge = PressureGauge(CONFIG)
    assert gauge.read(metrics(batches=100, busy_s=50.0, declined=5)) == 0.0
    with gauge.holds({"slo_class": "chat"}):
        assert gauge.read(metrics(batches=200, busy_s=51.0, declined=5)) == pytest.approx(0.2)  # 10 of 50 ms
        with gauge.holds({"slo_class": "code"}):
            pass
        assert gauge.read(metrics(batches=300, busy_s=52.0, declined=5)) == pytest.approx(0.5)  # 10 of 20 ms
        assert gauge.read(metrics(batches=400, busy_s=53.0, declined=5)) == pytest.approx(0.2)
        assert gauge.read(metrics(400, 53.0, admitted=3, declined=6)) == pytest.approx(1.25)
        assert gauge.read(metrics(400, 53.0, admitted=3, declined=6, other=9, share=0.4)) == pytest.approx(0.4)
    with gauge.holds({"slo_class": "batch"}), gauge.holds({"slo_class": "nonsense"}), gauge.holds(None):
        gauge.read(metrics(500, 54.0, 3, 6))
        assert gauge.read(metrics(600, 55.0, 3, 6)) == 0.0  # nobody is under an SLO


@given(st.text(max_size=300) | st.from_regex(r"(slo_opt_[a-z_]+(\{[^}\n]*\})? [0-9.eE+-]+\n)*", fullmatch=True))
def test_a_gauge_reads_anything(text):
    gauge = PressureGauge(CONFIG)
    gauge.read(metrics())
    assert gauge.read(text) >= 0
