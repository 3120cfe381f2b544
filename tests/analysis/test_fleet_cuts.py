"""The cheapest fleet that cuts leave, against all fleets."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.analysis.fleet_search import least_passing
from slo_opt.formulations.fleet_cuts import TOLERANCE, FleetCut, FleetPart, attained_most, cheapest_fleet, least_count

GAINS = st.floats(0, 5)
LIMIT = 6


@st.composite
def parts_of(draw, kinds: int):
    cuts = st.builds(FleetCut, st.floats(0, 10), st.tuples(*[GAINS] * kinds))
    return draw(
        st.lists(st.builds(FleetPart, st.floats(0, 30), st.lists(cuts, max_size=3).map(tuple)), min_size=1, max_size=3)
    )


@given(st.data(), st.integers(1, 3), st.integers(1, 40))
def test_the_cheapest_fleet_is_the_cheapest_of_all(data, kinds: int, needed: int):
    parts = data.draw(parts_of(kinds))
    prices = data.draw(st.lists(st.floats(0.1, 9), min_size=kinds, max_size=kinds))
    found = cheapest_fleet(parts, needed, prices, [LIMIT] * kinds)
    left = [
        math.fsum(p * n for p, n in zip(prices, counts, strict=True))
        for counts in itertools.product(range(LIMIT + 1), repeat=kinds)
        if attained_most(parts, counts) >= needed - TOLERANCE
    ]
    if found is None:
        assert not left
    else:
        assert attained_most(parts, found) >= needed - TOLERANCE
        assert math.fsum(p * n for p, n in zip(prices, found, strict=True)) == pytest.approx(min(left))


@given(st.data(), st.integers(1, 3))
def test_a_larger_fleet_never_attains_less(data, kinds: int):
    parts = data.draw(parts_of(kinds))
    counts = data.draw(st.lists(st.integers(0, 20), min_size=kinds, max_size=kinds))
    more = [count + data.draw(st.integers(0, 5)) for count in counts]
    assert attained_most(parts, more) >= attained_most(parts, counts) - 1e-9


@given(st.integers(0, 50), st.integers(0, 50))
def test_least_count(threshold: int, limit: int):
    found = least_count(lambda count: count >= threshold, limit)
    assert found == (threshold if threshold <= limit else None)


@given(st.sets(st.integers(1, 60)), st.integers(1, 60))
def test_a_search_ends_at_a_pass_above_a_failure(passing: set[int], start: int):
    """Whatever passes: the result was tried and passes, the one below was tried and fails, or is 0."""
    calls = []

    def passes(count: int) -> bool:
        calls.append(count)
        return count in passing

    search = least_passing(passes, start, 60)
    assert len(calls) == len(set(calls))
    tried = dict(search.probes)
    if search.count is None:
        assert not any(tried.values())
        assert 60 in tried
    else:
        assert tried[search.count]
        assert search.count == 1 or tried[search.count - 1] is False


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_monotone_search_finds_the_least(threshold: int, start: int):
    search = least_passing(lambda count: count >= threshold, start, 60)
    assert search.count == threshold
    assert search.monotone
