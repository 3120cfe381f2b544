"""`slo-opt trace`: what it prints and writes, its exit codes, and that it leaves nothing half done."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from slo_opt.cli.main import app
from slo_opt.traces.read import read_trace

EXAMPLES = Path(__file__).parents[2] / "examples"
MALFORMED = Path(__file__).parent / "malformed"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
    f"2023-11-16 18:17:{second:02d}.5000000,{100 + second},{second + 1}\r\n" for second in range(40)
)


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["trace", *map(str, arguments)], input=stdin)


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


def test_convert_writes_what_read_trace_reads(azure: Path, tmp_path: Path) -> None:
    options = ["--scenario", "coder", "--engine", "opt-6.7b-a100", "--window", "10:20", "--scale", "2", "--seed", "3"]
    target = tmp_path / "t.json"
    result = run("convert", azure, *options, "-o", target)
    assert (result.exit_code, result.stdout) == (0, "")
    expected = read_trace(azure, scenario="coder", engine="opt-6.7b-a100", window=(10, 20), scale=2, seed=3)
    assert read_trace(target) == expected
    assert [request.arrival_s for request in expected.requests] == [k / 2 for k in range(10)]
    assert run("convert", azure, *options).stdout == target.read_text()
    assert run("convert", "-", *options, stdin=AZURE).exit_code == 0


def test_convert_sorts_what_validate_refuses(tmp_path: Path) -> None:
    unsorted = MALFORMED / "native-unsorted.json"
    refused = run("validate", unsorted)
    assert refused.exit_code == 3
    assert "slo-opt trace convert --sort" in refused.stderr
    target = tmp_path / "sorted.json"
    assert run("convert", unsorted, "--sort", "-o", target).exit_code == 0
    assert run("validate", target).exit_code == 0


def test_generate_repeats_itself_and_says_how(tmp_path: Path) -> None:
    options = ["coder", "--rate", "3", "--duration", "30", "--seed", "4", "--arrivals", "poisson"]
    first, second = run("generate", *options), run("generate", *options, "-o", tmp_path / "t.json.gz")
    assert first.exit_code == second.exit_code == 0
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()) == first.stdout_bytes
    document = json.loads(first.stdout)
    assert document["provenance"]["command"] == "slo-opt trace generate " + " ".join(options)
    assert read_trace(tmp_path / "t.json.gz").provenance == document["provenance"]


def test_describe_table_and_json(azure: Path) -> None:
    table = run("describe", EXAMPLES / "mixed.json")
    assert table.exit_code == 0
    assert "best-effort" in table.stdout
    document = json.loads(run("describe", azure, "--format", "json").stdout)
    assert (document["requests"], document["engine"]) == (40, None)
    assert document["rate"] == pytest.approx(1.0)
    assert document["interarrival_cv"] == pytest.approx(0.0, abs=1e-9)
    assert document["peak_to_mean"] == pytest.approx(1.0)
    assert document["classes"][0]["prompt_tokens"]["mean"] == pytest.approx(119.5)
    coder = json.loads(run("describe", azure, "--scenario", "coder", "--format", "json").stdout)
    assert [row["slo"] for row in coder["classes"]] == ["all", "code"]


def test_validate_says_format_and_unservable(azure: Path) -> None:
    result = run("validate", azure)
    assert result.exit_code == 0
    assert "valid (azure format), 40 requests, no SLOs yet" in result.stdout
    document = json.loads(run("validate", EXAMPLES / "coder-burst.json", "--format", "json").stdout)
    assert (document["valid"], document["format"], document["unservable"]) == (True, "native", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["validate", MALFORMED / "native-truncated.json"], 3, "native-truncated.json: line 6"),
        (["validate", "no-such-file.json"], 3, "there is no such file"),
        (["describe", MALFORMED / "binary.bin"], 3, "is not UTF-8"),
        (["convert", MALFORMED / "azure-unsorted.csv", "--scenario", "coder"], 3, "--sort"),
        (["convert", EXAMPLES / "mixed.json", "--window", "9:1"], 3, "expected 0 <= START < END"),
        (["convert", EXAMPLES / "mixed.json", "--window", "500:600"], 3, "no request arrives in the window"),
        (["convert", EXAMPLES / "mixed.json", "--scale", "0"], 3, "expected a rate factor"),
        (["convert", EXAMPLES / "mixed.json", "--engine", "opt"], 3, "unknown engine"),
        (["generate", "codr"], 3, "Did you mean 'coder'"),
        (["generate", "coder", "--rate", "fast"], 2, "--rate"),
        (["generate"], 2, "WORKLOAD"),
    ],
)
def test_errors_are_one_message_and_a_code(arguments: list[str | Path], code: int, words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_failure_leaves_no_output(azure: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert run("convert", azure, "-o", target).exit_code == 3  # no scenario
    assert run("convert", MALFORMED / "azure-negative.csv", "--scenario", "coder", "-o", target).exit_code == 3
    assert run("generate", "coder", "-o", tmp_path / "none" / "t.json").exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["azure.csv"]
