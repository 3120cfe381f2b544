"""Bid prices against the dual of the knapsack over the window, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hand_made import ENGINE
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.policies.bid_price import BidPrices

# Value and seconds of the one resource that is scarce.
OFFERS = st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(1e-3, 5.0)), min_size=1, max_size=12)


def prices(load: float = 1.0, window_s: float = 10.0) -> BidPrices:
    return BidPrices(ENGINE, period_s=0.05, window_s=window_s, load=load)


def test_usage_by_hand():
    # 1 ms a token; a fixed 10 ms in 50 leave 80 % of the time. 45 tokens on average in blocks of 16, for 0.5 s.
    usage = prices().usage(40, 0, 10, 0.05)
    assert usage == pytest.approx([0.050 / 0.8, 45 / 16 * 0.5 / 1000])
    engine = replace(ENGINE, decode_context_s=1e-6, prefill_pair_s=1e-5, request_s=1e-4)
    cached = BidPrices(engine, 0.05, 10.0, 1.0).usage(40, 10, 10, 0.05)
    pairs = sum(range(11, 51))
    assert cached[0] == pytest.approx((0.050 + 1e-5 * pairs + 10 * (55e-6 + 1e-4)) / 0.8)


def test_a_step_longer_than_the_period_leaves_a_little():
    assert BidPrices(ENGINE, 0.005, 10.0, 1.0).usage(40, 0, 10, 0.05)[0] == pytest.approx(0.050 / 0.05)


@given(OFFERS, st.sampled_from([0.1, 0.5, 1.0, 1.3]))
def test_the_price_is_an_optimal_dual_of_the_knapsack(offers, load):
    bids = prices(load)
    for value, seconds in offers:
        bids.arrived(0.0, value, np.array([seconds, 0.0]))
    supply_s = load * 10.0
    price, other = bids.prices(10.0)

    def dual(price: float) -> float:
        return price * supply_s + sum(max(0.0, value - price * seconds) for value, seconds in offers)

    # The dual function is convex and piecewise linear: it is least at one of its corners.
    least = min(dual(corner) for corner in (0.0, *(value / seconds for value, seconds in offers)))
    assert dual(price) == pytest.approx(least, rel=1e-9)
    assert other == 0
    if sum(seconds for _, seconds in offers) <= supply_s * (1 - 1e-9):
        assert price == 0


def test_two_of_three_are_worth_it():
    bids = prices()
    for value, seconds in ((4.0, 4.0), (1.0, 4.0), (2.0, 4.0)):
        bids.arrived(0.0, value, np.array([seconds, 0.1]))
    # 10 seconds: all of the first two by density, half of the last, whose density is the price.
    assert bids.prices(10.0) == pytest.approx([0.25, 0])


def test_the_scarcer_resource_has_the_price():
    bids = prices()
    for seconds, memory in ((6.0, 8.0), (6.0, 9.0)):
        bids.arrived(0.0, 1.0, np.array([seconds, memory]))
    assert bids.prices(10.0) == pytest.approx([0, 1 / 9])


def test_what_the_engine_lacks_is_scarce():
    def scarce(**fields: int) -> list[bool]:
        bids = BidPrices(replace(ENGINE, **fields), 0.05, 10.0, 1.0)
        for _ in range(100):
            bids.arrived(0.0, 1.0, bids.usage(400, 0, 50, 0.05))
        return list(bids.prices(10.0) > 0)

    assert scarce(kv_blocks=1000) == [True, False]
    assert scarce(kv_blocks=100) == [False, True]


def test_nothing_seen_costs_nothing():
    assert list(prices().prices(5.0)) == [0, 0]


def test_arrivals_are_forgotten_after_the_window():
    bids = prices()
    for _ in range(3):
        bids.arrived(0.0, 1.0, np.array([4.0, 0.0]))
    assert bids.prices(10.0)[0] > 0
    assert list(bids.prices(10.1)) == [0, 0]


def test_a_burst_at_the_start_is_held_against_a_quarter_of_the_window():
    bids = prices()
    bids.arrived(0.0, 1.0, np.array([2.0, 0.0]))
    assert bids.prices(0.0)[0] == 0
    bids.arrived(0.1, 1.0, np.array([2.0, 0.0]))
    assert bids.prices(0.1)[0] == 0.5
    assert bids.prices(4.0)[0] == 0  # by now as much has been supplied


def test_a_supply_between_two_roundings_of_the_demand_has_a_price():
    seconds = np.random.default_rng(53).random(50)
    by_density = np.cumsum(np.sort(seconds))[-1]
    assert by_density < seconds.sum()
    bids = prices(load=by_density / 10.0)
    for taken in seconds:
        bids.arrived(0.0, 1.0, np.array([taken, 0.0]))
    assert bids.prices(10.0)[0] == 1 / seconds.max()
