"""What a replica tells routers, through Ray and back."""

import json

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.ray_serve.stats import KEY, ReplicaStats, read_stats
from slo_opt.engine_bridge.router.reports import EngineReport

COUNTS = st.none() | st.integers(0, 1 << 40)
SIZES = st.none() | st.integers(1, 1 << 40)
REPORTS = st.builds(EngineReport, COUNTS, COUNTS, st.none() | st.floats(0, 1), COUNTS, SIZES, SIZES)
STATS = st.builds(ReplicaStats, st.floats(0, 1e10), REPORTS, SIZES)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NAMES = ("at_s", "running", "waiting", "kv_share", "free_kv_blocks", "kv_blocks", "block_size_tokens", "max_model_len")


@given(STATS)
def test_what_was_told_is_read(stats):
    assert read_stats({"kv_events": [1], **json.loads(json.dumps(stats.to_dict()))}) == stats


@given(JUNK)
def test_what_is_no_report_is_none(junk):
    assert read_stats(junk) is None


@given(st.dictionaries(st.sampled_from(NAMES), JUNK))
def test_whatever_lies_in_a_report_only_figures_are_read(told):
    found = read_stats({KEY: told})
    if found is None:
        return
    assert found.at_s >= 0
    report = found.report
    for count in (report.running, report.waiting, report.free_kv_blocks):
        assert count is None or (type(count) is int and count >= 0)
    for size in (report.kv_blocks, report.block_size_tokens, found.max_model_len):
        assert size is None or (type(size) is int and size > 0)
    assert report.kv_share is None or 0 <= report.kv_share <= 1
