"""The search of the highest passing rate, against oracles whose answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.simulate.bracket import highest_passing

RATES = st.floats(0.02, 500.0)


@given(truth=RATES, start=RATES, tolerance=st.floats(0.005, 0.3), step=st.floats(1.05, 4.0))
def test_a_monotone_threshold_is_found_within_the_tolerance(truth: float, start: float, tolerance: float, step: float):
    asked: list[float] = []

    def passes(rate: float) -> bool:
        asked.append(rate)
        return rate <= truth

    search = highest_passing(passes, start, floor=0.01, ceiling=1e3, tolerance=tolerance, step=step)
    assert search.rate is not None
    assert search.fails_at is not None
    assert search.rate <= truth < search.fails_at <= search.rate * (1 + tolerance)
    assert search.monotone
    assert len(asked) == len(set(asked)), "a rate was tried twice"
    ways = math.log(1e5) / math.log(step) + math.log2(math.log(step) / math.log1p(tolerance) + 1)
    assert len(asked) <= ways + 5


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_whatever_the_oracle_says_the_result_passed_and_a_failure_is_near(good: set[int], start: int):
    """Passing at random: nothing is assumed of the oracle, the claims of the result hold all the same."""

    def passes(rate: float) -> bool:
        return round(math.log(rate, 1.1)) in good

    search = highest_passing(passes, 1.1**start, floor=1.0, ceiling=1.1**40, tolerance=0.03, step=1.3)
    tried = dict(search.probes)
    if search.rate is None:
        assert not any(tried.values())
        return
    assert tried[search.rate]
    assert not any(passed for rate, passed in tried.items() if rate > search.rate)
    if search.fails_at is None:
        assert search.rate == pytest.approx(1.1**40)
    else:
        assert not tried[search.fails_at]
        assert search.fails_at <= search.rate * 1.03
    below = [rate for rate, passed in tried.items() if not passed and rate < search.rate]
    assert search.monotone == (not below)


def test_one_failure_on_the_way_up_does_not_end_it_and_two_do():
    alone = highest_passing(lambda rate: rate < 1.2 or 2.0 < rate < 4.0, 1.0, floor=0.1, ceiling=100.0, step=1.5)
    assert alone.rate == pytest.approx(4.0, rel=0.03)
    assert not alone.monotone
    twice = highest_passing(lambda rate: rate < 1.2 or 3.0 < rate < 4.0, 1.0, floor=0.1, ceiling=100.0, step=1.5)
    assert twice.rate == pytest.approx(1.2, rel=0.03)
    assert twice.monotone


def test_nothing_passes():
    search = highest_passing(lambda rate: False, 3.0, floor=0.5, ceiling=10.0)
    assert search.rate is None
    assert min(rate for rate, _ in search.probes) == 0.5
    assert max(rate for rate, _ in search.probes) == 3.0


def test_everything_passes():
    search = highest_passing(lambda rate: True, 3.0, floor=0.5, ceiling=10.0)
    assert search.rate == 10.0
    assert search.fails_at is None


def test_giving_up_costs_one_probe():
    assert len(highest_passing(lambda rate: False, 3.0, floor=0.5, ceiling=10.0, give_up=True).probes) == 1
    assert highest_passing(lambda rate: rate < 5, 3.0, floor=0.5, ceiling=10.0, give_up=True).rate == pytest.approx(
        5, rel=0.03
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"step": 1.0},
        {"floor": 0.0},
        {"floor": 2.0},
        {"ceiling": math.inf},
        {"ceiling": 0.5},
    ],
)
def test_parameters_out_of_range_are_refused(arguments: dict[str, float]):
    with pytest.raises(InvalidInputError, match="expected"):
        highest_passing(lambda rate: True, 1.0, **{"floor": 0.5, "ceiling": 10.0, **arguments})
