"""Generated traces have the published statistics, within the stated tolerance, and follow their seed."""

import statistics
from pathlib import Path

import numpy as np
import pytest

from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.arrivals import CODE_BURSTS, Arrivals, Gamma, arrival_times, arrivals_named
from slo_opt.traces.describe import describe, interarrival_cv, peak_to_mean
from slo_opt.traces.formats import native
from slo_opt.traces.generate import generate
from slo_opt.traces.profiles import PROFILES, profile_named
from slo_opt.traces.read import read_trace
from slo_opt.traces.scenarios import SCENARIOS
from slo_opt.traces.trace import context_tokens

EXAMPLES = Path(__file__).parents[2] / "examples"
# Published: prompt and output mean, 50, 90 and 99 % quantiles.
PUBLISHED = {
    "azure-code": ((2048, 1469, 5188, 7436), (28, 13, 55, 251)),
    "azure-conv": ((1155, 1020, 2734, 4142), (211, 129, 424, 601)),
    "burstgpt": ((374, 74, 1291, 3023), (122, 14, 401, 757)),
    "arxiv": ((2588, 2730, 3702, 3933), (291, 167, 372, 3271)),
    "sharegpt": ((2340, 1730, 5696, 7434), (439, 415, 834, 998)),
    "humaneval": ((137, 120, 234, 365), (55, 46, 113, 199)),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_lengths_match_the_published_ones(name: str) -> None:
    samples = PROFILES[name].lengths.sample(100_000, np.random.default_rng(7))
    for tokens, (mean, p50, p90, p99) in zip(samples, PUBLISHED[name], strict=True):
        assert tokens.min() >= 1
        assert tokens.mean() == pytest.approx(mean, rel=0.06)
        assert np.percentile(tokens, [50, 90, 99]) == pytest.approx([p50, p90, p99], rel=0.05, abs=1)


def test_reasoning_lengths_match_the_published_means() -> None:
    prompts, outputs = PROFILES["servegen-reasoning"].lengths.sample(200_000, np.random.default_rng(7))
    assert prompts.mean() == pytest.approx(686, rel=0.08)
    assert outputs.mean() == pytest.approx(822, rel=0.10)
    ranks = [tokens.argsort().argsort() for tokens in (prompts, outputs)]
    assert np.corrcoef(ranks)[0, 1] == pytest.approx(-0.35, abs=0.02)


def test_tool_rounds_prefill_about_690_tokens_of_context() -> None:
    trace = generate("toolllm", rate=10, duration_s=500, seed=2)
    contexts = [stage.cached_tokens + stage.prompt_tokens for request in trace.requests for stage in request.stages]
    assert statistics.mean(contexts) == pytest.approx(690, rel=0.05)


@pytest.mark.parametrize(
    ("process", "cv", "tolerance"), [(Gamma(1.0), 1.0, 0.04), (Gamma(1.09), 1.09, 0.05), (Gamma(3.0), 3.0, 0.35)]
)
def test_gamma_arrivals(process: Arrivals, cv: float, tolerance: float) -> None:
    times = arrival_times(process, 5.53, 3600, np.random.default_rng(3))
    assert len(times) == pytest.approx(5.53 * 3600, rel=0.06 if cv > 2 else 0.03)
    assert interarrival_cv(times) == pytest.approx(cv, abs=tolerance)
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 3600


def test_code_bursts_match_azure_code() -> None:
    # Medians over 15 hours; one hour alone varies by a third.
    hours = [arrival_times(CODE_BURSTS, 2.57, 3436, np.random.default_rng(seed)) for seed in range(15)]
    gaps = [np.diff(times) for times in hours]
    short = [gap[gap <= 30] for gap in gaps]
    assert statistics.median(len(times) / 3436 for times in hours) == pytest.approx(2.57, rel=0.15)
    assert statistics.median(gap.std() / gap.mean() for gap in short) == pytest.approx(6.2, rel=0.15)
    assert statistics.median(peak_to_mean(times) or 0 for times in hours) == pytest.approx(12.7, rel=0.3)


@pytest.mark.parametrize("workload", [*SCENARIOS, *PROFILES])
def test_every_workload_generates_requests_that_fit(workload: str) -> None:
    trace = generate(workload, rate=4, duration_s=120, seed=5, engine="opt-6.7b-a100")
    assert max(context_tokens(request) for request in trace.requests) <= 2048
    assert trace.provenance["seed"] == 5
    assert trace == generate(workload, rate=4, duration_s=120, seed=5, engine="opt-6.7b-a100")
    assert trace.requests != generate(workload, rate=4, duration_s=120, seed=6, engine="opt-6.7b-a100").requests


def test_mixed_is_five_workloads_of_equal_rate() -> None:
    trace = generate("mixed", rate=10, duration_s=1000, seed=1, arrivals="poisson")
    counts = dict.fromkeys(("chatbot", "coder", "summarizer", "toolllm", "reasoning"), 0)
    for request in trace.requests:
        counts[request.id.rsplit("-", 1)[0]] += 1
    assert all(count == pytest.approx(2000, rel=0.1) for count in counts.values())


def test_slos_of_another_scenario() -> None:
    trace = generate("azure-conv", rate=4, duration_s=60, scenario="polyserve")
    assert trace.provenance["scenario"] == "polyserve"
    assert len(trace.slo_classes) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "both must be positive"),
        ({"rate": float("nan")}, "both must be positive"),
        ({"duration_s": -1}, "both must be positive"),
        ({"rate": 1e9, "duration_s": 1e6}, "more than 5000000 requests"),
        ({"rate": 1e-6, "duration_s": 1}, "no request arrives within 1 s"),
        ({"seed": -1}, "seed is -1"),
        ({"arrivals": "gamma:x"}, "expected poisson, bursty, or gamma:CV"),
        ({"arrivals": "gamma:99"}, "expected poisson, bursty, or gamma:CV"),
        ({"best_effort": 2}, "best-effort share"),
        ({"engine": "opt-6.7"}, "Did you mean 'opt-6.7b-a100'"),
        ({"scenario": "codr"}, "Did you mean 'coder'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        generate("chatbot", **options)  # type: ignore[arg-type]


def test_unknown_profile_and_arrivals() -> None:
    with pytest.raises(InvalidInputError, match="Did you mean 'azure-code'"):
        profile_named("azur-code")
    assert arrivals_named("gamma:2.5") == Gamma(2.5)


@pytest.mark.parametrize("name", ["coder-burst", "mixed"])
def test_examples_come_from_their_command(name: str) -> None:
    shipped = read_trace(EXAMPLES / f"{name}.json")
    facts = shipped.provenance
    if facts["numpy"] != ".".join(np.__version__.split(".")[:2]):
        pytest.skip("numpy's random streams may differ between versions")
    drawn = generate(
        str(facts["workload"]),
        rate=float(str(facts["rate"])),
        duration_s=float(str(facts["duration_s"])),
        seed=int(str(facts["seed"])),
        engine="opt-6.7b-a100",
        best_effort=float(str(facts.get("best_effort_share", 0))),
        name=name,
    )
    assert native.encode(drawn.with_provenance(command=facts["command"])) == native.encode(shipped)


def test_example_shapes() -> None:
    burst = describe(read_trace(EXAMPLES / "coder-burst.json"))
    assert 200 <= burst.requests <= 300
    assert (burst.interarrival_cv or 0) > 4
    mixed = read_trace(EXAMPLES / "mixed.json")
    stages = [stage for request in mixed.requests for stage in request.stages]
    assert any(stage.pause_s and stage.cached_tokens for stage in stages)
    assert any(stage.prompt_tokens == 0 for stage in stages)
    assert any(mixed.slo_classes[stage.slo].best_effort for stage in stages)
