"""What engines report, read from Prometheus' text."""

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.reports import EngineReport, read_report

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="1024"} 1.0
"""
SECOND = VLLM.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")
OURS = """\
slo_opt_running_requests{engine="0"} 4.0
slo_opt_waiting_requests{engine="0"} 1.0
slo_opt_free_kv_blocks{engine="0"} 700.0
"""


def test_vllm():
    assert read_report(VLLM) == EngineReport(3, 2, 0.25, None, 1024, 32)


def test_engines_of_one_server_are_added_up():
    assert read_report(VLLM + SECOND) == EngineReport(6, 4, 0.5, None, 2048, 32)


def test_what_vllm_tells_goes_first():
    """The gauges of slo-opt's scheduler keep their last value while the engine is idle."""
    assert read_report(OURS + VLLM) == EngineReport(3, 2, 0.25, 700, 1024, 32)
    assert read_report(OURS) == EngineReport(4, 1, None, 700, None, None)


def test_another_server():
    assert read_report("") == EngineReport()
    assert read_report("sglang:num_running_reqs 3\n") == EngineReport()
    assert read_report(VLLM.replace("vllm:kv_cache", "vllm:gpu_cache")).kv_share == 0.25


@given(st.sampled_from(["NaN", "+Inf", "-1", "x", "1e99", ""]), st.sampled_from([VLLM, OURS]))
def test_values_that_mean_nothing_are_passed_over(value: str, text: str):
    lines = [line.rpartition(" ")[0] + " " + value for line in text.splitlines()]
    report = read_report("\n".join(lines))
    assert (report.running, report.waiting, report.kv_share, report.free_kv_blocks) == (None,) * 4


@given(st.text(max_size=300), st.integers(0, 400))
def test_nothing_makes_it_raise(text: str, place: int):
    report = read_report(VLLM[:place] + text + VLLM[place:])
    assert report.kv_share is None or 0 <= report.kv_share <= 1
    for count in (report.running, report.waiting, report.kv_blocks, report.block_size_tokens):
        assert count is None or count >= 0
