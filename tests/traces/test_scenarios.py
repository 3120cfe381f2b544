"""Scenarios, windows, scaling, merging, best effort, and requests that nothing can serve."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.traces.best_effort import with_best_effort
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.scenarios import SCENARIOS, apply_scenario, is_large_model, scenario_named
from slo_opt.traces.trace import Trace, context_tokens
from slo_opt.traces.transforms import by_arrival, merge, scale, window
from slo_opt.traces.unservable import apply_unservable, unservable_requests


def raw(*lengths: tuple[int, int], **fields: object) -> RawTrace:
    rows = tuple(
        Row(str(k), float(k), prompt, output, **fields)  # type: ignore[arg-type]
        for k, (prompt, output) in enumerate(lengths)
    )
    return RawTrace("rows.csv", "rows", rows)


@pytest.mark.parametrize(
    ("scenario", "limits"),
    [
        ("chatbot", {"chat": (5, 100)}),
        ("coder", {"code": (5, 50)}),
        ("summarizer", {"summary": (3, 100)}),
        ("toolllm", {"tool-loop": (3, 50), "tool-answer": (3, 100)}),
        ("reasoning", {"thinking": (3, 50), "response": (3, 100)}),
    ],
)
def test_slos_serve_limits(scenario: str, limits: dict[str, tuple[float, float]]) -> None:
    trace = apply_scenario(raw((100, 50)), scenario)
    assert {slo.name: (slo.ttft_slowdown, slo.tpot_ms) for slo in trace.slo_classes.values()} == limits


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_large_models_double_the_tpots_of_slos_serve_only(engine: str) -> None:
    factor = 2 if "70b" in engine else 1
    assert is_large_model(engine_named(engine)) == (factor == 2)
    assert apply_scenario(raw((100, 50)), "coder", engine).slo_classes["code"].tpot_ms == 50 * factor
    assert {slo.tpot_ms for slo in apply_scenario(raw((100, 50)), "polyserve", engine).slo_classes.values()} == {
        20,
        30,
        50,
        100,
    }


def test_polyserve_shares() -> None:
    trace = apply_scenario(raw(*[(100, 50)] * 20_000), "polyserve", seed=3)
    tpots = Counter(trace.slo_classes[request.stages[0].slo].tpot_ms for request in trace.requests)
    ttfts = Counter(trace.slo_classes[request.stages[0].slo].ttft_ms for request in trace.requests)
    for tpot_ms, share in ((20, 0.1), (30, 0.2), (50, 0.3), (100, 0.4)):
        assert tpots[tpot_ms] / 20_000 == pytest.approx(share, abs=0.012)  # 3.5 sigma
    for ttft_ms in (300, 500, 1000):
        assert ttfts[ttft_ms] / 20_000 == pytest.approx(1 / 3, abs=0.012)


def test_seed_decides_what_is_drawn() -> None:
    rows = raw(*[(100, 50)] * 50)
    for scenario in ("polyserve", "mixed", "toolllm", "reasoning", "qoserve"):
        assert apply_scenario(rows, scenario, seed=1) == apply_scenario(rows, scenario, seed=1)
        assert apply_scenario(rows, scenario, seed=1).requests != apply_scenario(rows, scenario, seed=2).requests


def test_requests_over_the_context_are_dropped_first_and_counted() -> None:
    trace = apply_scenario(raw((2000, 48), (2000, 49), (100, 5), (4000, 1)), "coder", "opt-6.7b-a100")
    assert [request.id for request in trace.requests] == ["0", "2"]
    assert trace.provenance["dropped_over_context"] == 2
    assert len(apply_scenario(raw((2000, 49)), "coder").requests) == 1
    with pytest.raises(InvalidInputError, match=r"all 1 requests exceed the context of opt-6\.7b-a100"):
        apply_scenario(raw((2000, 49)), "coder", "opt-6.7b-a100")


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 400)), min_size=1, max_size=20),
    st.sampled_from(sorted(SCENARIOS)),
    st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_stages_keep_the_row(lengths: list[tuple[int, int]], scenario: str, seed: int) -> None:
    rows = raw(*lengths, cached_tokens=7)
    trace = apply_scenario(rows, scenario, seed=seed)
    assert len(trace.requests) == len(rows.rows)
    for row, request in zip(rows.rows, trace.requests, strict=True):
        assert request.output_tokens == row.output_tokens
        assert request.stages[0].prompt_tokens == row.prompt_tokens
        assert request.stages[0].cached_tokens == 7
        context = 0
        for k, stage in enumerate(request.stages):
            if stage.prompt_tokens and k:  # a tool round finds the whole context before it in the cache
                assert stage.cached_tokens == context
            context += stage.prompt_tokens + stage.output_tokens + (7 if k == 0 else 0)
        assert context_tokens(request) == context
    trace.to_instance("llama-3-8b-h100")


def test_reason_ratio_splits_the_output() -> None:
    stages = apply_scenario(raw((10, 100), reason_ratio=0.9), "reasoning").requests[0].stages
    assert [(stage.slo, stage.prompt_tokens, stage.output_tokens) for stage in stages] == [
        ("thinking", 10, 90),
        ("response", 0, 10),
    ]
    for ratio, split in ((0.0, [1, 99]), (1.0, [99, 1])):
        stages = apply_scenario(raw((10, 100), reason_ratio=ratio), "reasoning").requests[0].stages
        assert [stage.output_tokens for stage in stages] == split
    assert len(apply_scenario(raw((10, 1)), "reasoning").requests[0].stages) == 1


def test_labelled_rows_choose_their_part() -> None:
    trace = apply_scenario(raw((10, 10), slo="toolllm"), "mixed")
    assert trace.requests[0].stages[-1].slo == "tool-answer"
    assert (
        apply_scenario(raw((10, 10), slo="ttft300-tpot20"), "polyserve").requests[0].stages[0].slo == "ttft300-tpot20"
    )


def test_qoserve_batch_tiers_keep_their_promise_for_a_thousand_tokens() -> None:
    classes = scenario_named("qoserve").classes
    for name, limit_s in (("batch-600s", 600), ("batch-1800s", 1800)):
        slo = next(slo for slo in classes if slo.name == name)
        assert slo.ttft_ms is not None
        assert slo.ttft_ms / 1e3 + 999 * slo.tpot_ms / 1e3 <= limit_s


def test_unknown_scenario_suggests() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown scenario 'codr'\. Did you mean 'coder'\? Scenarios: chatbot"):
        scenario_named("codr")


def test_window_is_half_open_and_shifted() -> None:
    rows = raw(*[(10, 10)] * 5).rows
    assert [(row.id, row.arrival_s) for row in window(rows, 1, 3)] == [("1", 0.0), ("2", 1.0)]
    with pytest.raises(InvalidInputError, match="no request arrives in the window 10:20"):
        window(rows, 10, 20)
    for lo, hi in ((3, 1), (-1, 2), (float("nan"), 2)):
        with pytest.raises(InvalidInputError, match="not an interval"):
            window(rows, lo, hi)


def test_scale_divides_arrivals_and_nothing_else() -> None:
    rows = raw(*[(10, 10)] * 3).rows
    assert [row.arrival_s for row in scale(rows, 2)] == [0.0, 0.5, 1.0]
    assert [replace(row, arrival_s=0.0) for row in scale(rows, 2)] == [replace(row, arrival_s=0.0) for row in rows]
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="expected a rate factor"):
            scale(rows, factor)


def test_sort_is_stable() -> None:
    rows = raw(*[(10, 10)] * 3).rows
    shuffled = (rows[2], replace(rows[1], arrival_s=0.0), rows[0])
    assert [row.id for row in by_arrival(shuffled)] == ["1", "0", "2"]


def test_merge_keeps_everything_in_order() -> None:
    code = apply_scenario(raw((10, 10), (10, 10)), "coder")
    chat = replace(apply_scenario(raw((20, 20)), "chatbot"), name="other")
    both = merge("both", [code, chat])
    assert [request.id for request in both.requests] == ["rows-0", "other-0", "rows-1"]
    assert set(both.slo_classes) == {"code", "chat"}
    other = replace(chat, slo_classes={"chat": SloClass("chat", 10, ttft_ms=5)})
    with pytest.raises(InvalidInputError, match="means two things"):
        merge("both", [chat, replace(other, name="x")])
    with pytest.raises(InvalidInputError, match="differ in engine"):
        merge("both", [chat, replace(code, engine="opt-6.7b-a100")])


def test_native_trace_can_be_given_other_slos() -> None:
    reasoning = apply_scenario(raw((10, 100), reason_ratio=0.9), "reasoning")
    assert apply_scenario(reasoning.raw(), "reasoning").requests == reasoning.requests
    (request,) = apply_scenario(reasoning.raw(), "coder").requests
    assert request.stages == (Stage(10, 100, "code"),)


def test_best_effort_share() -> None:
    trace = apply_scenario(raw(*[(10, 10)] * 1000), "toolllm")
    some = with_best_effort(trace, 0.2, seed=1)
    moved = [request for request in some.requests if request.stages[0].slo == "best-effort"]
    assert len(moved) == pytest.approx(200, abs=45)  # 3.5 sigma
    assert all({stage.slo for stage in request.stages} == {"best-effort"} for request in moved)
    instance = some.to_instance("opt-6.7b-a100")
    assert {instance.value_of(request) for request in moved} == {0.0}
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInputError, match="best-effort share"):
            with_best_effort(trace, share)


def test_unservable_policies() -> None:
    classes = {"fast": SloClass("fast", 50, ttft_ms=40), "fine": SloClass("fine", 50, ttft_ms=400)}
    requests = (
        Request("0", 0, (Stage(100, 5, "fine"),)),
        Request("1", 1, (Stage(1500, 5, "fast"),)),
        Request("2", 2, (Stage(2040, 50, "fine"),)),
    )
    instance = Trace("t", requests, classes).to_instance("opt-6.7b-a100")
    assert [request.id for request, _ in unservable_requests(instance)] == ["1", "2"]
    with pytest.raises(
        InvalidInputError, match=r"request '1' cannot be served by opt-6\.7b-a100: TTFT limit .*--unservable lose.*drop"
    ):
        apply_unservable(instance, "error")
    assert apply_unservable(instance, "lose") is instance
    assert [request.id for request in apply_unservable(instance, "drop").requests] == ["0"]
    with pytest.raises(InvalidInputError, match="can serve none of the 2 requests"):
        apply_unservable(instance.with_requests(requests[1:]), "drop")
    with pytest.raises(InvalidInputError, match="Did you mean 'lose'"):
        apply_unservable(instance, "loose")


def test_trace_without_engine_needs_one() -> None:
    trace = apply_scenario(raw((10, 10)), "coder")
    with pytest.raises(InvalidInputError, match="names no engine; choose one"):
        trace.to_instance()
    assert trace.to_instance("opt-6.7b-a100", num_replicas=2).num_replicas == 2
