"""From what a live engine served to a trace: same requests, same promises, nothing hidden."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slo_opt.cli.main import app
from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.request import Stage
from slo_opt.engine_bridge.decision_log import DecisionLog, ServedRequest
from slo_opt.traces.formats.decision_log import OUTCOME
from slo_opt.traces.formats.detect import TraceFormat, detect
from slo_opt.traces.read import read_trace
from slo_opt.traces.source import Source, load
from slo_opt.traces.trace import Trace

ENGINE = EngineModel("live", "learned", (RooflinePiece(1e-4, 5e-3),), kv_blocks=4096)
START = 1_795_000_000.0
HEADER = json.dumps({"format": "slo-opt-decisions", "version": 1})


def served(number: int, after_s: float = 0.0, **fields: Any) -> ServedRequest:
    usual = {"output_tokens": 20, "slo": "chat", "ttft_limit_ms": 500.0, "tpot_ms": 50.0, "attained": True}
    return ServedRequest(f"cmpl-{number}", START + after_s, **{"prompt_tokens": 100, **usual, **fields})


def written(tmp_path: Path, *requests: ServedRequest, engine: EngineModel | None = ENGINE) -> Path:
    path = tmp_path / "decisions.jsonl"
    path.unlink(missing_ok=True)
    log = DecisionLog(path, {} if engine is None else {"engine": engine, "vllm": "vllm 0.32.0", "policy": "slo-opt"})
    for request in requests:
        log.write(request)
    log.close()
    return path


def lines(tmp_path: Path, *texts: str) -> Path:
    path = tmp_path / "decisions.jsonl"
    path.write_text("\n".join((HEADER, *texts)) + "\n")
    return path


def line(**fields: Any) -> str:
    usual = {"id": "a", "arrival_unix_s": START, "prompt_tokens": 10, "output_tokens": 5}
    return json.dumps({**usual, "ttft_limit_ms": 500, "tpot_ms": 50, "attained": True, **fields})


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)


def test_requests_come_back_by_arrival(tmp_path: Path) -> None:
    path = written(tmp_path, served(2, 1.25, prompt_tokens=300, cached_tokens=32), served(1, 0.5), served(3, 2.0))
    trace = read_trace(path)
    assert [(request.id, request.arrival_s) for request in trace.requests] == [
        ("cmpl-1", 0.0),
        ("cmpl-2", 0.75),
        ("cmpl-3", 1.5),
    ]
    assert trace.requests[1].stages == (Stage(268, 20, "chat", cached_tokens=32),)
    assert trace.engine == ENGINE
    assert trace.name == "decisions"
    slo = trace.slo_classes["chat"]
    assert (slo.ttft_ms, slo.tpot_ms, slo.weight, slo.best_effort) == (500, 50, 1, False)
    assert trace.provenance["format"] == "decision-log"
    assert (trace.provenance["vllm"], trace.provenance["policy"]) == ("vllm 0.32.0", "slo-opt")


def test_limits_make_the_classes(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        served(0),
        served(1, ttft_limit_ms=500.00000001),  # what clock arithmetic leaves
        served(2, ttft_limit_ms=750.5),
        served(3, weight=2.0),
        served(4, slo="code"),
        served(5, slo="bulk", best_effort=True, ttft_limit_ms=60_000.0, tpot_ms=1000.0, attained=None),
        served(6, slo="free", best_effort=True, ttft_limit_ms=None, tpot_ms=None, attained=None),
    )
    trace = read_trace(path)
    assert [request.stages[0].slo for request in trace.requests] == [
        "chat 500/50 ms x1.0",
        "chat 500/50 ms x1.0",
        "chat 750.5/50 ms x1.0",
        "chat 500/50 ms x2.0",
        "code",
        "bulk",
        "free",
    ]
    assert trace.slo_classes["chat 750.5/50 ms x1.0"].ttft_ms == 750.5
    assert trace.slo_classes["chat 500/50 ms x2.0"].weight == 2
    assert trace.slo_classes["bulk"].best_effort
    assert trace.slo_classes["free"].best_effort


def test_a_slowdown_stays_one(tmp_path: Path) -> None:
    multiple = {"slo": "code", "ttft_slowdown": 8.0}
    path = written(
        tmp_path,
        served(0, ttft_limit_ms=100.0, **multiple),
        served(1, ttft_limit_ms=130.0, **multiple),
        served(2, slo="code", ttft_limit_ms=130.0),
    )
    trace = read_trace(path)
    assert [request.stages[0].slo for request in trace.requests] == ["code 8.0x/50 ms"] * 2 + ["code 130/50 ms"]
    slo = trace.slo_classes["code 8.0x/50 ms"]
    assert (slo.ttft_ms, slo.ttft_slowdown) == (None, 8)


def test_thinking_is_a_stage_of_its_own(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        served(0, thinking_tpot_ms=20.0, thinking_tokens=15, cached_tokens=16),
        served(1, thinking_tpot_ms=20.0, thinking_tokens=20),  # never got to the response
        served(2, thinking_tpot_ms=20.0, thinking_tokens=0),
        served(3, thinking_tpot_ms=30.0, thinking_tokens=1),
    )
    trace = read_trace(path)
    stages = [request.stages for request in trace.requests]
    assert stages[0] == (Stage(84, 15, "chat thinking", cached_tokens=16), Stage(0, 5, "chat"))
    assert stages[1] == (Stage(100, 20, "chat thinking"),)
    assert stages[2] == (Stage(100, 20, "chat"),)
    assert stages[3] == (Stage(100, 1, "chat thinking'"), Stage(0, 19, "chat"))
    tpots = {name: slo.tpot_ms for name, slo in trace.slo_classes.items()}
    assert tpots == {"chat": 50, "chat thinking": 20, "chat thinking'": 30}


def test_what_was_not_served_whole_is_kept_or_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        *(served(number, output_tokens=length) for number, length in enumerate((10, 30, 50))),
        served(3, slo="code", output_tokens=7),
        served(4, outcome="refused", output_tokens=0, attained=False),
        served(5, outcome="refused", output_tokens=0, attained=False, slo="new"),
        served(6, outcome="aborted", output_tokens=4, attained=False, lateness_s=-0.1),
        served(7, outcome="aborted", output_tokens=4, attained=False, lateness_s=0.1),
        served(8, outcome="aborted", output_tokens=0, attained=False),
        served(9, outcome="malformed", output_tokens=0, attained=None, ttft_limit_ms=None),
    )
    trace = read_trace(path)
    assert {request.id: request.output_tokens for request in trace.requests} == {
        "cmpl-0": 10,
        "cmpl-1": 30,
        "cmpl-2": 50,
        "cmpl-3": 7,
        "cmpl-4": 30,  # the median of its class
        "cmpl-5": 10,  # of all, the lower of the middle two
        "cmpl-6": 4,
        "cmpl-7": 4,
    }
    facts = trace.provenance
    assert (facts["assumed_lengths"], facts["dropped_malformed"], facts["dropped_aborted_without_token"]) == (2, 1, 1)
    assert (facts["live_offered"], facts["live_attained"]) == (8, 5)  # of the aborted, the one on time so far


def test_refusals_alone_have_no_length(tmp_path: Path) -> None:
    path = written(tmp_path, served(0, outcome="refused", output_tokens=0, attained=False))
    with pytest.raises(TraceFormatError, match="no request with tokens"):
        read_trace(path)


def test_the_outcome_is_that_of_the_window(tmp_path: Path) -> None:
    late = {"attained": False, "weight": 3.0}
    path = written(tmp_path, served(0), served(1, 1.0, **late), served(2, 2.0, weight=3.0), served(3, 3.0))
    assert outcome(read_trace(path)) == (4, 3, 5.0)
    assert outcome(read_trace(path, window=(1, 3))) == (2, 1, 3.0)
    for options in ({"scale": 2.0}, {"scenario": "coder"}):
        assert outcome(read_trace(path, **options)) is None  # type: ignore[arg-type]


def outcome(trace: Trace) -> tuple[Any, ...] | None:
    return tuple(trace.provenance[name] for name in OUTCOME) if OUTCOME[0] in trace.provenance else None


def test_a_converted_log_keeps_its_outcome_until_it_is_cut(tmp_path: Path) -> None:
    path, target = written(tmp_path, served(0), served(1, 1.0)), tmp_path / "day.json"
    assert run("trace", "convert", path, "-o", target).exit_code == 0
    assert outcome(read_trace(target)) == (2, 2, 2.0)
    assert read_trace(target) == read_trace(path)
    for options in ({"window": (0, 1)}, {"scale": 2.0}, {"scenario": "coder"}):
        assert outcome(read_trace(target, **options)) is None  # type: ignore[arg-type]


def test_the_engine_of_the_last_header_counts(tmp_path: Path) -> None:
    learned = EngineModel("live", "learned", (RooflinePiece(2e-4, 6e-3),), kv_blocks=4096)
    one = written(tmp_path, served(0)).read_text()
    two = written(tmp_path, served(1, 1.0), engine=learned).read_text()
    path = tmp_path / "both.jsonl"
    path.write_text(one + two)
    trace = read_trace(path)
    assert [request.id for request in trace.requests] == ["cmpl-0", "cmpl-1"]
    assert trace.engine == learned
    assert read_trace(path, engine="opt-6.7b-a100").engine == "opt-6.7b-a100"


def test_lines_without_a_header_need_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "tail.jsonl"
    path.write_text(line() + "\n")
    assert detect(load(path)) is TraceFormat.DECISION_LOG
    with pytest.raises(InvalidInputError, match="names no engine"):
        read_trace(path).to_instance()


def test_a_last_line_cut_short_is_told_and_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, served(0), served(1))
    text = path.read_text().splitlines()[:3]
    path.write_text("\n".join(text)[:-7])
    with pytest.warns(UserWarning, match="line 3 is cut short and left out"):
        trace = read_trace(path)
    assert [request.id for request in trace.requests] == ["cmpl-0"]
    assert trace.provenance["dropped_cut_short"] == 1
    path.write_text("\n".join(text))  # complete, but for the line end
    assert len(read_trace(path).requests) == 2


REFUSED = {
    "half a line in the middle": ([line()[:30], line(id="b")], 2, "is not JSON"),
    "no object": (["[1]"], 2, "is not a JSON object"),
    "no id": (['{"arrival_unix_s": 1, "prompt_tokens": 1}'], 2, "'id' is missing"),
    "empty id": ([line(id="")], 2, "'id'"),
    "id twice": ([line(), line(id="b"), line()], 4, "is that of line 2 too"),
    "no prompt": ([line(prompt_tokens=0)], 2, "expected an integer >= 1"),
    "fraction": ([line(output_tokens=1.5)], 2, "expected an integer"),
    "negative time": ([line(arrival_unix_s=-1)], 2, ">= 0"),
    "whole prompt cached": ([line(cached_tokens=10)], 2, "at least one is computed"),
    "no limit": ([line(tpot_ms=None)], 2, "'tpot_ms' is missing in a request under an SLO"),
    "limit of zero": ([line(ttft_limit_ms=0)], 2, "> 0"),
    "unknown outcome": ([line(outcome="lost")], 2, "'outcome'"),
    "misspelt column": ([line(prefered_slo=1, output_token=3)], 2, "unknown column 'output_token'"),
    "another version": (['{"format": "slo-opt-decisions", "version": 2}'], 2, "unknown version 2"),
    "another file": (['{"format": "slo-opt-steps", "version": 1}'], 2, "header of something else"),
    "engine without pieces": (
        ['{"format": "slo-opt-decisions", "version": 1, "engine": {"name": "x", "source": "y", "pieces": []}}'],
        2,
        "engine: engine 'x' has no roofline piece",
    ),
    "engine misspelt": (
        ['{"format": "slo-opt-decisions", "version": 1, "engine": {"name": "x", "source": "y"}}'],
        2,
        "engine: field 'pieces' is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    texts, place, problem = REFUSED[name]
    with pytest.raises(TraceFormatError, match=f"line {place}: ") as refused:
        read_trace(lines(tmp_path, *texts))
    assert problem in str(refused.value)
    assert refused.value.remedy


@settings(max_examples=60)
@given(st.text(max_size=300))
def test_no_content_makes_anything_but_a_refusal(text: str) -> None:
    from slo_opt.traces.formats import decision_log

    with pytest.raises(TraceFormatError):
        decision_log.read(Source("x.jsonl", f"{HEADER}\n{text}\n"))


times = st.integers(0, 10**12).map(lambda microseconds: microseconds / 1e6)
limits = st.integers(1, 86_400_000_000).map(lambda microseconds: microseconds / 1e3)
requests = st.builds(
    lambda arrival_s, prompt, cached, thinking, **fields: (
        arrival_s,
        {
            "prompt_tokens": prompt + cached,
            "cached_tokens": cached,
            **fields,
            **({} if thinking is None else {"thinking_tpot_ms": thinking[0], "thinking_tokens": thinking[1]}),
        },
    ),
    arrival_s=times,
    prompt=st.integers(1, 100_000),
    cached=st.integers(0, 100_000),
    output_tokens=st.integers(1, 100_000),
    slo=st.sampled_from(["chat", "code", "chat thinking", "chat 1/1 ms"]),
    ttft_limit_ms=limits,
    tpot_ms=limits,
    thinking=st.none() | st.tuples(limits, st.integers(0, 100_000)),
    ttft_slowdown=st.none() | st.floats(1, 1e6),
    weight=st.floats(0.001, 1e6),
    best_effort=st.booleans(),
    attained=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(drawn=st.lists(requests, min_size=1, max_size=12))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[float, dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    start = 1_000_000.0  # small enough for microseconds in a float
    logged = [ServedRequest(str(number), start + after, **fields) for number, (after, fields) in enumerate(drawn)]
    trace = read_trace(written(folder, *logged))
    earliest = min(request.arrival_unix_s for request in logged)
    found = {request.id: request for request in trace.requests}
    assert set(found) == {request.id for request in logged}
    for request in logged:
        stages = found[request.id].stages
        assert found[request.id].arrival_s == pytest.approx(request.arrival_unix_s - earliest, abs=2e-6)
        assert stages[0].prompt_tokens == request.prompt_tokens - request.cached_tokens
        assert stages[0].cached_tokens == request.cached_tokens
        assert sum(stage.output_tokens for stage in stages) == request.output_tokens
        # Token by token the TPOT that was promised.
        promised = [request.tpot_ms] * request.output_tokens
        if request.thinking_tpot_ms is not None:
            count = min(request.thinking_tokens or 0, request.output_tokens)
            promised[:count] = [request.thinking_tpot_ms] * count
        kept = [trace.slo_classes[stage.slo].tpot_ms for stage in stages for _ in range(stage.output_tokens)]
        assert kept == promised
        for stage in stages:
            slo = trace.slo_classes[stage.slo]
            multiple = None if request.best_effort else request.ttft_slowdown
            assert slo.ttft_slowdown == multiple
            assert slo.ttft_ms == (request.ttft_limit_ms if multiple is None else None)
            assert (slo.weight, slo.best_effort) == (request.weight, request.best_effort)
    scored = [request for request in logged if not request.best_effort]
    assert trace.provenance["live_offered"] == len(scored)
    assert trace.provenance["live_attained"] == sum(bool(request.attained) for request in scored)


@pytest.fixture
def day(tmp_path: Path) -> Path:
    many = [served(number, number / 20, attained=number % 3 > 0, prompt_tokens=50 + number) for number in range(30)]
    return written(tmp_path, *many, served(30, 1.5, slo="bulk", best_effort=True, attained=None))


def test_solve_takes_a_log_and_shows_both(day: Path) -> None:
    result = run("solve", day, "--method", "dp,highs", "-q")
    assert result.exit_code == 0, result.output
    assert "30 of 30 offered requests attained" in result.stdout
    assert "Served live: 20 of 30 attained (66.7 % of offered), 33.33 % below what no scheduler can exceed." in (
        " ".join(result.stdout.split())
    )
    document = json.loads(run("solve", day, "--method", "dp,highs", "-q", "--format", "json").stdout)
    assert [document["trace"]["provenance"][name] for name in OUTCOME] == [30, 20, 20]


def test_every_command_that_takes_a_trace_takes_a_log(day: Path, tmp_path: Path) -> None:
    assert "valid (decision-log format), 31 requests" in run("trace", "validate", day).stdout
    assert json.loads(run("trace", "validate", day, "--format", "json").stdout)["has_slos"] is True
    described = run("trace", "describe", day)
    assert described.exit_code == 0
    assert "live_attained: 20" in described.stdout
    simulated = run("simulate", day, "--policy", "edf", "--format", "json", "-q")
    assert simulated.exit_code == 0, simulated.output
    assert json.loads(simulated.stdout)["runs"][0]["metrics"]["total"]["offered"] == 30
    gap = run("gap", day, "--policies", "edf", "--default-settings", "-q", "--format", "json")
    assert gap.exit_code == 0, gap.output
    piped = run("solve", "-", "--method", "dp,highs", "-q", stdin=day.read_text())
    assert "Served live: 20 of 30" in piped.stdout


def test_a_faster_engine_than_its_model_is_told(tmp_path: Path) -> None:
    slow = EngineModel("live", "learned", (RooflinePiece(1e-3, 0.4),), kv_blocks=4096)
    path = written(tmp_path, *(served(number, number / 100) for number in range(8)), engine=slow)
    result = run("solve", path, "--method", "dp,highs", "-q", "--unservable", "lose")
    assert "more than the engine model allows" in " ".join(result.stdout.split()), result.output


def test_a_provenance_of_other_hands_breaks_nothing(tmp_path: Path) -> None:
    path, target = written(tmp_path, served(0)), tmp_path / "t.json"
    run("trace", "convert", path, "-o", target)
    document = json.loads(target.read_text())
    document["provenance"] = {"live_offered": "many"}
    target.write_text(json.dumps(document))
    result = run("solve", target, "--method", "dp,highs", "-q")
    assert result.exit_code == 0
    assert "Served live" not in result.stdout
