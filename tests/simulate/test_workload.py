"""Named workloads: seeded, sorted, at the rate asked for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fingerprint import requests_hash
from slo_opt.simulate.fluid_rate import fluid_rate
from slo_opt.simulate.workload import Workload
from slo_opt.traces.scenarios import SCENARIOS
from slo_opt.traces.trace import context_tokens

DATA = Path(__file__).parents[3] / "shared" / "data"
OPT = engine_named("opt-6.7b-a100")
LLAMA = engine_named("llama-3-8b-a100")
needs_data = pytest.mark.skipif(not (DATA / "traces").is_dir(), reason="the published traces are not at hand")


@settings(max_examples=40, deadline=None)
@given(
    scenario=st.sampled_from(sorted(SCENARIOS)),
    rate=st.floats(0.05, 12.0),
    duration_s=st.floats(10.0, 90.0),
    seed=st.integers(0, 5),
)
def test_generated_workloads_are_seeded_sorted_and_at_their_rate(
    scenario: str, rate: float, duration_s: float, seed: int
):
    workload = Workload(scenario, OPT, rate, duration_s, seed)
    instance = workload.instance()
    arrivals = [request.arrival_s for request in instance.requests]
    parts = 5 if scenario == "mixed" else 1
    assert abs(len(arrivals) - rate * duration_s) <= parts * 0.5 + parts * (rate * duration_s / parts < 0.5)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] <= max(1 / (rate / parts), duration_s * (1 + parts / (rate * duration_s)))
    assert all(context_tokens(request) <= OPT.max_model_len for request in instance.requests)
    again = Workload(scenario, OPT, rate, duration_s, seed).instance()
    assert requests_hash(again) == requests_hash(instance)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_seeds_differ(scenario: str):
    first, second = (Workload(scenario, OPT, 3.0, 60.0, seed).instance() for seed in (0, 1))
    assert requests_hash(first) != requests_hash(second)


def test_a_lower_rate_has_a_part_of_the_requests_of_a_higher_one():
    high = Workload("summarizer", LLAMA, 3.9, 60.0).instance()
    low = Workload("summarizer", LLAMA, 3.0, 60.0).instance()
    assert {request.stages for request in low.requests} <= {request.stages for request in high.requests}
    assert len(low.requests) == 180


def test_mixed_has_every_class_of_its_parts():
    instance = Workload("mixed", LLAMA, 5.0, 60.0).instance()
    counts = {part: sum(r.id.startswith(f"{part}-") for r in instance.requests) for part in SCENARIOS["mixed"].parts}
    assert counts == dict.fromkeys(SCENARIOS["mixed"].parts, 60)


@pytest.mark.parametrize("values", [{"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}, {"rate": float("inf")}])
def test_a_rate_that_is_none_is_refused(values: dict[str, float]):
    with pytest.raises(InvalidInputError, match="rate is"):
        Workload("coder", OPT, **values)


def test_other_refusals():
    with pytest.raises(InvalidInputError, match="Did you mean 'coder'"):
        Workload("codr", OPT, 1.0)
    with pytest.raises(InvalidInputError, match="duration"):
        Workload("coder", OPT, 1.0, 0.0)
    with pytest.raises(InvalidInputError, match="seed"):
        Workload("coder", OPT, 1.0, seed=-1)
    with pytest.raises(InvalidInputError, match="lower one"):
        Workload("coder", OPT, 1e6, 1e5)


def test_a_data_folder_without_the_trace_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match=r"has no traces/azure2023_code\.csv\.gz and no formats/.*leave --data"):
        Workload("coder", OPT, 1.0, data_dir=tmp_path).instance()


@pytest.fixture
def small_data(tmp_path: Path) -> Path:
    """A code trace of 40 rows after the start of the window, one of them over the context of OPT."""
    rows = [f"{1786 + k / 2},{100 + k},{3 + k}" for k in range(40)]
    rows[7] = "1789.5,4000,5"
    (tmp_path / "traces").mkdir()
    text = "\n".join(["arrival_s,prompt_tokens,output_tokens", "3.0,50,2", *rows])
    (tmp_path / "traces" / "azure2023_code.csv.gz").write_text(text)  # readers look at the content, not the name
    return tmp_path


def test_a_window_keeps_its_requests_at_every_rate(small_data: Path):
    slow = Workload("coder", OPT, 1.0, 10.0, 0, small_data).instance()
    fast = Workload("coder", OPT, 4.0, 10.0, 0, small_data).instance()
    assert [r.stages for r in slow.requests] == [r.stages for r in fast.requests]
    assert [r.stages[0].prompt_tokens for r in slow.requests] == [100 + k for k in range(20) if k != 7]
    # 19 requests in 10 s of the trace: at 1 request/s they take 19 s.
    assert slow.requests[2].arrival_s == pytest.approx(1.0 * 19 / 10)
    assert [4 * r.arrival_s for r in fast.requests] == pytest.approx([r.arrival_s for r in slow.requests])


def test_seeds_shuffle_lengths_over_the_same_arrivals(small_data: Path):
    plain, shuffled = (Workload("coder", OPT, 1.0, 10.0, seed, small_data).instance() for seed in (0, 1))
    assert [r.arrival_s for r in plain.requests] == [r.arrival_s for r in shuffled.requests]
    lengths = [[(s.prompt_tokens, s.output_tokens) for r in i.requests for s in r.stages] for i in (plain, shuffled)]
    assert lengths[0] != lengths[1]
    assert sorted(lengths[0]) == sorted(lengths[1])


def test_the_digest_follows_the_content(small_data: Path):
    workload = Workload("coder", OPT, 1.0, 10.0, 0, small_data)
    assert workload.digest == Workload("coder", OPT, 9.0, 10.0, 3, small_data).digest
    assert Workload("coder", OPT, 1.0).digest is None
    other = small_data / "other"
    (other / "traces").mkdir(parents=True)
    file = "traces/azure2023_code.csv.gz"
    (other / file).write_bytes((small_data / file).read_bytes() + b"\n2000.0,5,5")
    assert Workload("coder", OPT, 1.0, 10.0, 0, other).digest != workload.digest


@needs_data
@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_published_traces(scenario: str):
    workload = Workload(scenario, OPT, 2.0, 100.0, 0, DATA)
    instance = workload.instance()
    arrivals = [request.arrival_s for request in instance.requests]
    windowed = scenario in ("coder", "chatbot", "polyserve", "qoserve")
    assert windowed or len(arrivals) == 200
    assert len(arrivals) / 2.0 * 0.5 < arrivals[-1] <= len(arrivals) / 2.0
    assert arrivals == sorted(arrivals)
    assert "generated" not in workload.source or scenario in ("toolllm", "mixed")
    assert all(context_tokens(request) <= OPT.max_model_len for request in instance.requests)


@needs_data
def test_the_windows_are_those_of_the_paper():
    coder = Workload("coder", OPT, 1.0, 300.0, 0, DATA).instance()
    chatbot = Workload("chatbot", OPT, 1.0, 300.0, 0, DATA).instance()
    # SLOs-Serve, arXiv 2504.08784, table of workloads: mean prompt and output after the filter.
    for instance, prompt, output in ((coder, 847, 27), (chatbot, 763, 267)):
        count = len(instance.requests)
        assert sum(r.prompt_tokens for r in instance.requests) / count == pytest.approx(prompt, abs=1)
        assert sum(r.output_tokens for r in instance.requests) / count == pytest.approx(output, abs=1)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_the_fluid_rate_does_not_rise_with_a_slower_engine(scenario: str):
    fast, slow = (
        fluid_rate(Workload(scenario, engine_named(name), 2.0, 60.0).instance())
        for name in ("llama-3-8b-h100", "llama-3-8b-a100")
    )
    assert 0.05 < slow <= fast < 100
