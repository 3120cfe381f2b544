"""The fullest moment of a cache, against looking at every moment."""

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.routing.kv_peak import KvPeak

REQUESTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=12)


def fullest(requests: list[tuple[int, int]]) -> int:
    """Tokens at each step, by looking."""
    longest = max((left for _, left in requests), default=0)
    return max(sum(size + step for size, left in requests if left >= step) for step in range(longest + 1))


@given(REQUESTS, st.tuples(st.integers(0, 50), st.integers(0, 30)))
def test_peak_is_the_fullest_of_all_moments(requests, further):
    peak = KvPeak([size for size, _ in requests], [left for _, left in requests])
    assert peak.tokens == fullest(requests)
    assert peak.tokens_with(*further) == fullest([*requests, further])


def test_one_that_leaves_early_makes_room_for_one_that_grows():
    peak = KvPeak([100, 10], [5, 200])
    assert peak.tokens == 210  # 120 when the first leaves
    assert peak.tokens_with(50, 10) == 210
    assert peak.tokens_with(50, 300) == 460
