"""Names and ids of users that look like markup, mathematics, or letters that the terminal lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("[/x]", "[red]r[/b]", ":smile:", "$a_$ b")


def renamed(trace_path: Path, name: str) -> Path:
    """The trace with that name on everything that can have one."""
    fields = json.loads(trace_path.read_text())
    fields["name"] = name
    for slo in fields["slo_classes"]:
        slo["name"] = name + slo["name"]
    for request in fields["requests"]:
        request["id"] = name + request["id"]
        request["slo"] = name + request["slo"]
    trace_path.write_text(json.dumps(fields))
    return trace_path


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(cli, small_solvers, trace_path: Path, tmp_path: Path, name: str):
    plan, runs = tmp_path / "plan.json", tmp_path / "runs.jsonl"
    commands = (
        ("solve", renamed(trace_path, name), "-o", plan),
        ("simulate", trace_path, "-o", runs),
        ("simulate", trace_path, "--policy", "vllm-fcfs,edf"),
        ("compare", runs),
        ("trace", "describe", trace_path),
        ("explain", plan, "--all"),
    )
    for command in commands:
        result = cli(*command)
        assert result.exit_code == 0, result.output
        assert name in result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are(cli, small_solvers, trace_path: Path, tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    result = cli("solve", renamed(trace_path, name), "--plot", tmp_path / "p.svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.svg").read_text().count(f"<!-- {name}") > 10
    assert cli("simulate", trace_path, "-o", tmp_path / "r", "--plot", tmp_path / "load.svg").exit_code == 0
    assert cli("compare", tmp_path / "r", "--plot", tmp_path / "bars.svg").exit_code == 0
    for picture in ("load.svg", "bars.svg"):
        assert f"<!-- {name}" in (tmp_path / picture).read_text()


def test_a_picture_that_fails_does_not_cost_the_result(
    cli, small_solvers, trace_path: Path, tmp_path: Path, monkeypatch
):
    pytest.importorskip("matplotlib")

    def fail(*args: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr("slo_opt.report.figure.save", fail)
    result = cli("solve", trace_path, "--plot", tmp_path / "p.png")
    assert result.exit_code == 1
    assert "60 offered requests attained" in result.stdout


@pytest.mark.parametrize("command", ["solve", "explain"])
def test_a_terminal_without_the_letters(cli, small_solvers, trace_path: Path, tmp_path: Path, command: str):
    plan = tmp_path / "plan.json"
    assert cli("solve", renamed(trace_path, "é"), "-o", plan).exit_code == 0
    words = {"solve": f"'solve', {str(trace_path)!r}", "explain": f"'explain', {str(plan)!r}"}[command]
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from slo_opt.solvers import registry
registry.SCHEDULE_SOLVERS = {{"search": "greedy:GreedySolver", "highs": "greedy:EngineTimeBound"}}
from slo_opt.cli.main import main
sys.argv = ["slo-opt", {words}]
main()
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert b"?" in result.stdout
    assert b"SLO class" in result.stdout
