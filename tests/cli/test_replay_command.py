"""`slo-opt replay` against a server without a model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource
from test_exit_codes import assert_refused

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'slo-opt[live]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))

from stub_server import StubServer

from slo_opt.domain.fingerprint import requests_hash
from slo_opt.traces.read import read_trace

REPORT = Path(__file__).parents[2] / "slo_opt/report"
SCHEMAS = {name: json.loads((REPORT / name).read_text()) for name in ("replay.schema.json", "simulate.schema.json")}
REGISTRY = Registry().with_resources((name, Resource.from_contents(fields)) for name, fields in SCHEMAS.items())
SCHEMA = SCHEMAS["replay.schema.json"]
FAST = ("--scale", "20")  # a second of the example's arrivals in 50 ms


def check(document: dict, schema: dict = SCHEMA) -> None:
    jsonschema.Draft202012Validator(schema, registry=REGISTRY).validate(document)


def replayed(cli, trace_path: Path, server: StubServer, *arguments) -> dict:
    """The one run of `replay`."""
    result = cli("replay", trace_path, "--url", server.url, *FAST, *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(result.stdout)
    check(document)
    (run,) = document["runs"]
    return run


def test_a_run_has_the_figures_of_a_simulated_one(cli, trace_path: Path):
    with StubServer() as server:
        run = replayed(cli, trace_path, server, "--label", "stub")
    simulated = cli("simulate", trace_path, *FAST, "--policy", "vllm-fcfs", "--format", "json")
    (other,) = json.loads(simulated.stdout)["runs"]
    for key in ("requests", "engine", "score_rule", "limits", "trace"):
        assert run[key] == other[key]
    assert run["policy"] == "stub"
    assert run["metrics"]["total"].keys() == other["metrics"]["total"].keys()
    for row, expected in zip(run["metrics"]["classes"], other["metrics"]["classes"], strict=True):
        assert (row["name"], row["offered"], row["requests"]) == (
            expected["name"],
            expected["offered"],
            expected["requests"],
        )
    assert run["metrics"]["total"]["finished"] == 60
    assert run["metrics"]["offered_rps"] == other["metrics"]["offered_rps"]
    assert run["server"]["model"] == "stub"


def test_the_schema_refuses_what_is_missing_or_unknown(cli, trace_path: Path):
    with StubServer() as server:
        run = replayed(cli, trace_path, server)
    schema = {"$ref": "replay.schema.json#/$defs/run"}
    check(run, schema)
    for key in run:
        with pytest.raises(jsonschema.ValidationError):
            check({name: value for name, value in run.items() if name != key}, schema)
    for part in ("metrics", "replay", "server"):
        for key in run[part]:
            fields = {name: value for name, value in run[part].items() if name != key}
            with pytest.raises(jsonschema.ValidationError):
                check({**run, part: fields}, schema)
        with pytest.raises(jsonschema.ValidationError):
            check({**run, part: {**run[part], "new": 1}}, schema)


def test_lines_and_tokens_are_kept(cli, trace_path: Path, tmp_path: Path):
    runs, tokens = tmp_path / "live.jsonl", tmp_path / "tokens.jsonl"
    with StubServer(behave=lambda call: "429" if call.number == 3 else None) as server:
        for label in ("a", "b"):
            replayed(cli, trace_path, server, "-o", runs, "--save-tokens", tokens, "--label", label)
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [line["policy"] for line in lines] == ["a", "b"]
    assert [len(line["refused"]) for line in lines] == [1, 0]
    instance = read_trace(trace_path, scale=20).to_instance()
    assert lines[0]["requests"]["hash"] == requests_hash(instance)
    rows = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert [row["id"] for row in rows] == [request.id for request in instance.requests]
    for row, request in zip(rows, instance.requests, strict=True):
        assert row["outcome"] == "finished"
        assert sum(len(each["tokens_s"]) for each in row["rounds"]) == request.output_tokens
        assert row["rounds"][0]["due_s"] == request.arrival_s


def test_the_table_names_what_went_wrong(cli, trace_path: Path):
    wrong = {3: "429", 4: "disconnect", 5: "400", 6: "429"}
    with StubServer(behave=lambda call: wrong.get(call.number)) as server:
        result = cli("replay", trace_path, "--url", server.url, *FAST, "--label", "[/x] stub")
    assert result.exit_code == 0, result.output
    words = result.stdout
    assert "2 refused, 2 failed" in words
    assert "refused: HTTP 429: cannot be attained (2 requests)" in words
    assert "failed: connection lost in the middle of the stream (1 request)" in words
    assert "failed: HTTP 400: vllm_xargs: slo_class is 'x' (1 request)" in words
    assert "[/x] stub" in words
    assert "58 not refused" in words


def test_a_late_generator_and_a_limit_that_bound_are_said(cli, trace_path: Path):
    arguments = ("--max-lateness", "0.000001", "--max-concurrency", "1", "--count-by", "chunks", "-q")
    with StubServer(tells="nothing") as server:
        run = replayed(cli, trace_path, server, *arguments)
        text = cli("replay", trace_path, "--url", server.url, *FAST, *arguments).stdout
    assert run["metrics"]["late"]
    assert run["metrics"]["num_throttled"] > 0
    assert run["metrics"]["num_estimated"] == 60
    for words in ("the load was not that of the trace", "--max-concurrency", "counted by events"):
        assert words in " ".join(text.split())


def test_nothing_but_errors_is_an_error_with_its_figures(cli, trace_path: Path):
    with StubServer(behave=lambda call: "400") as server:
        result = cli("replay", trace_path, "--url", server.url, *FAST)
    assert result.exit_code == 3
    assert "served no request: HTTP 400: vllm_xargs" in result.stderr
    assert "0 of 60 offered requests attained" in result.stdout
    with StubServer(behave=lambda call: "429") as server:  # to refuse everything is an answer
        assert cli("replay", trace_path, "--url", server.url, *FAST).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "http://127.0.0.1:1"), ("cannot be reached",)),
        (("--url", "nowhere"), ("--url nowhere", "http://localhost:8000")),
        (("--vocab-size", "3"), ("vocab_size is 3",)),
        (("--timeout", "0"), ("timeout_s is 0",)),
        (("--max-concurrency", "0"), ("max_concurrency",)),
        (("--max-lateness", "nan"), ("max_lateness_s",)),
        (("--warmup", "-1"), ("warmup",)),
        (("--api-key-env", "NO_SUCH_KEY"), ("NO_SUCH_KEY",)),
        (("--window", "5000:6000"), ("no request arrives",)),
        (("--engine", "a100"), ("unknown engine",)),
        (("-o", "nowhere/runs.jsonl"), ("does not exist",)),
    ],
)
def test_bad_values(cli, trace_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]):
    url = () if "--url" in arguments else ("--url", "http://127.0.0.1:1")
    assert_refused(cli("replay", trace_path, *url, *arguments), 3, *words)


@pytest.mark.parametrize(
    "arguments",
    [(), ("--url", "http://x", "--slo-fields", "xarg"), ("--url", "http://x", "-o", "a", "--save-tokens", "./a")],
)
def test_usage(cli, trace_path: Path, arguments: tuple[str, ...]):
    assert_refused(cli("replay", trace_path, *arguments), 2)


def test_a_model_that_is_not_there(cli, trace_path: Path):
    with StubServer(models=("llama",)) as server:
        result = cli("replay", trace_path, "--url", server.url, "--model", "lama")
    assert_refused(result, 3, "has no model 'lama'", "did you mean 'llama'")


def test_a_file_of_something_else_is_not_added_to(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    assert cli("simulate", trace_path, "--policy", "edf", "-o", path).exit_code == 0
    before = path.read_bytes()
    result = cli("replay", trace_path, "--url", "http://127.0.0.1:1", "-o", path)
    assert_refused(result, 3, f"{path}: line 1", "is no replay")
    assert path.read_bytes() == before


def test_without_aiohttp(cli, trace_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = cli("replay", trace_path, "--url", "http://127.0.0.1:1")
    assert_refused(result, 6, "aiohttp", "slo-opt[live]")


def test_help_loads_no_client():
    code = "import sys; import slo_opt.cli.main; print('aiohttp' in sys.modules, 'msgspec' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"


def interrupted(arguments: list[str], when: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """The command, sent Ctrl-C once `when` is true."""
    code = "import sys; from slo_opt.cli.main import main; sys.argv = ['slo-opt', *sys.argv[1:]]; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    while not when() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_an_interrupt_keeps_what_was_measured(trace_path: Path, tmp_path: Path):
    output = tmp_path / "live.jsonl"
    with StubServer() as server:
        arguments = ["replay", str(trace_path), "--url", server.url, "--scale", "2", "-o", str(output)]
        result = interrupted(arguments, lambda: len(server.calls) > 5)
    assert result.returncode == 130, result.stderr
    assert result.stderr == "slo-opt: error: interrupted\n"
    assert "Stopped early" in result.stdout
    run = json.loads(output.read_text())
    check(run, {"$ref": "replay.schema.json#/$defs/run"})
    assert run["metrics"]["cut"]
    assert 5 <= run["metrics"]["total"]["offered"] < 60


def test_an_interrupt_before_the_first_request(trace_path: Path, tmp_path: Path):
    with StubServer(behave=lambda call: "silent") as server:
        arguments = ["replay", str(trace_path), "--url", server.url, "--warmup", "1", "-o", str(tmp_path / "x")]
        result = interrupted(arguments, lambda: bool(server.calls))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "slo-opt: error: interrupted\n")
    assert not (tmp_path / "x").exists()
