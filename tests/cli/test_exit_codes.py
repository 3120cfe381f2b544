"""Every way to fail: one message, the documented code, no traceback, no file left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slo_opt.domain.errors import TraceFormatError
from slo_opt.solvers import versions


def assert_refused(result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert "Traceback" not in result.output
    assert result.stdout == ""
    if code != 2:
        assert len(lines) == 1, lines
        assert lines[0].startswith("slo-opt: ")
    for word in words:
        assert word.lower() in result.stderr.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve",),
        ("nonsense",),
        ("solve", "x.json", "--nonsense"),
        ("solve", "x.json", "--scale", "fast"),
        ("solve", "x.json", "--time-limit", "-1"),
        ("solve", "x.json", "--time-limit", "nan"),
        ("solve", "x.json", "--time-limit", "inf"),
        ("solve", "x.json", "--seed", "-1"),
        ("trace", "generate", "coder", "--seed", "-1"),
        ("solve", "x.json", "-o", "same.png", "--plot", "same.png"),
        ("solve", "x.json", "-o", "same-bounds.png", "--plot", "./same.png"),
        ("solve", "x.json", "--gap", "nan"),
        ("solve", "x.json", "--replicas", "0"),
        ("solve", "x.json", "--format", "xml"),
        ("solve", "x.json", "--unservable", "maybe"),
    ],
)
def test_usage(cli, arguments):
    assert_refused(cli(*arguments), 2)


def test_missing_file(cli):
    assert_refused(cli("solve", "nowhere.json"), 3, "nowhere.json", "no such file")


def test_folder(cli, tmp_path: Path):
    assert_refused(cli("solve", tmp_path), 3, "folder")


def test_malformed_json_names_the_line(cli, tmp_path: Path):
    path = tmp_path / "broken.json"
    path.write_text('{\n "format": "slo-opt-trace",\n "version": 1,,\n}')
    assert_refused(cli("solve", path), 3, "broken.json", "line 3")


def test_malformed_request_names_its_place(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    fields["requests"][7]["prompt_tokens"] = -5
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("solve", trace_path), 3, "$.requests[7]", "-5")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--engine", "opt-6.7b-a10", ("unknown engine", "did you mean 'opt-6.7b-a100'")),
        ("--scenario", "coderr", ("unknown scenario", "did you mean 'coder'")),
        ("--method", "serch", ("unknown", "did you mean 'search'")),
        ("--method", " , ", ("names no method",)),
        ("--score-rule", "dslq", ("unknown score rule", "did you mean 'dslo'")),
        ("--input-format", "azur", ("azur",)),
        ("--window", "ten", ("START:END",)),
        ("--window", "20:10", ("START < END",)),
        ("--window", "5000:6000", ("small.json: no request arrives in the window", "arrivals run from", "choose")),
        ("--window", "nan:2", ("START < END",)),
        ("--scale", "0", ("scale",)),
        ("--scale", "nan", ("scale",)),
        ("--plot", "picture.xyz", (".png",)),
        ("--plot", "nowhere/picture.png", ("does not exist",)),
        ("-o", "nowhere/plan.json", ("does not exist",)),
    ],
)
def test_bad_values(cli, trace_path: Path, option: str, value: str, words: tuple[str, ...]):
    assert_refused(cli("solve", trace_path, option, value), 3, *words)


def test_unservable_request_is_refused_unless_told_otherwise(cli, small_solvers, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    fields["requests"][3]["prompt_tokens"] = 50_000
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("solve", trace_path), 3, f"{trace_path}: ", "max_model_len", "--unservable")
    lost = json.loads(cli("solve", trace_path, "--unservable", "lose", "--format", "json").stdout)
    dropped = json.loads(cli("solve", trace_path, "--unservable", "drop", "--format", "json").stdout)
    assert (lost["offered"], lost["trace"]["dropped"]) == (60, 0)
    assert (dropped["offered"], dropped["trace"]["dropped"], dropped["trace"]["read"]) == (59, 1, 60)


def test_infeasible(cli, solvers, trace_path: Path):
    solvers({"search": "stopped:Infeasible"})
    result = cli("solve", trace_path, "--method", "search", "--format", "json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["status"] == "infeasible"
    assert "infeasible" in result.stderr


def test_limit_without_a_solution(cli, solvers, trace_path: Path):
    solvers({"search": "stopped:OutOfTime"})
    result = cli("solve", trace_path, "--method", "search")
    assert result.exit_code == 5
    assert "--time-limit" in result.stderr
    assert "No schedule" in result.stdout


def test_a_bound_alone_is_an_answer_where_no_more_was_asked(cli, small_solvers, trace_path: Path):
    result = cli("solve", trace_path, "--method", "highs", "--format", "json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schedule"] is None
    assert document["gap"] is None
    assert 0 < document["bound"] <= 60


def test_missing_solver(cli, solvers, trace_path: Path):
    solvers({"search": "greedy:GreedySolver", "cpsat": "stopped:Missing"})
    result = cli("solve", trace_path, "--method", "search,cpsat")
    assert_refused(result, 6, "ortools", "pip install")


@pytest.mark.parametrize("library", ["ortools", "cvxpy"])
def test_hidden_library(trace_path: Path, tmp_path: Path, library: str):
    """With the library hidden from the interpreter, its method ends with code 6 and says what to install."""
    method = {"ortools": "cpsat", "cvxpy": "cvxpy"}[library]
    code = f"""
import importlib.abc, importlib.metadata, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
found = importlib.metadata.distribution
def distribution(name):
    if name == {library!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = distribution
from slo_opt.cli.main import main
sys.argv = ["slo-opt", "solve", {str(trace_path)!r}, "--method", {method!r}, "-o", {str(tmp_path / "plan.json")!r}]
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 6, result.stderr
    assert library in result.stderr
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "plan.json").exists()


def test_missing_matplotlib_is_told_before_any_work(cli, small_solvers, trace_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = cli("solve", trace_path, "--plot", tmp_path / "picture.png")
    assert_refused(result, 6, "matplotlib", "slo-opt[plot]")
    assert list(tmp_path.iterdir()) == [trace_path]


def test_doctor_refuses_forbidden_versions(cli, monkeypatch):
    installed = versions.installed_version
    wrong = {"highspy": "1.14.0", "cvxpy": "1.9.3"}
    rows = versions.check_versions(lambda name: wrong.get(name) or installed(name))
    monkeypatch.setattr(versions, "check_versions", lambda: rows)
    result = cli("doctor", "--format", "json")
    assert result.exit_code == 6
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert {row["name"] for row in report["libraries"] if not row["ok"]} >= set(wrong)
    assert "highspy" in result.stderr
    assert "wrong MIP optima" in result.stderr


def test_doctor_is_content_here(cli):
    result = cli("doctor")
    assert result.exit_code == 0, result.output
    assert "highspy" in result.stdout


def test_broken_method_keeps_the_others_results(cli, solvers, trace_path: Path):
    solvers({"search": "greedy:GreedySolver", "cpsat": "stopped:Broken"})
    result = cli("solve", trace_path, "--method", "search,cpsat", "--format", "json")
    assert result.exit_code == 1
    methods = {row["method"]: row for row in json.loads(result.stdout)["methods"]}
    assert methods["search"]["attained"] > 0
    assert methods["cpsat"]["status"] == "error"
    assert "division by zero" in methods["cpsat"]["message"]
    assert "Traceback" not in result.output


def test_illegal_schedules_are_never_shown(cli, solvers, trace_path: Path):
    solvers({"search": "stopped:Cheating"})
    result = cli("solve", trace_path, "--method", "search", "--format", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["schedule"] is None
    assert document["attained"] == 0
    assert document["methods"][0]["attained"] is None
    assert "illegal" in document["methods"][0]["message"]


def test_a_bound_below_a_checked_schedule_stops_everything(cli, solvers, trace_path: Path, tmp_path: Path):
    solvers({"search": "greedy:GreedySolver", "highs": "stopped:TooLow"})
    plan = tmp_path / "plan.json"
    assert_refused(cli("solve", trace_path, "-o", plan), 1, "'highs'", "model is wrong")
    assert not plan.exists()


def test_interrupt_reports_the_best_so_far(cli, solvers, trace_path: Path):
    solvers({"search": "greedy:GreedySolver", "cpsat": "stopped:Interrupted"})
    result = cli("solve", trace_path, "--method", "search,cpsat", "--format", "json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["status"] == "interrupted"
    assert document["attained"] > 0


def test_interrupt_outside_a_solver(cli, small_solvers, trace_path: Path, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slo_opt.traces.read.read_trace", interrupt)
    assert_refused(cli("solve", trace_path), 130, "interrupted")


def test_unexpected_error_is_one_line_and_debug_shows_where(cli, small_solvers, trace_path: Path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("slo_opt.traces.read.read_trace", fail)
    assert_refused(cli("solve", trace_path), 1, "unexpected RuntimeError: boom", "--debug")
    assert "Traceback" in cli("--debug", "solve", trace_path).stderr


@pytest.mark.parametrize("where", ["plan", "plot"])
def test_failure_while_writing_leaves_no_file(cli, small_solvers, trace_path: Path, tmp_path: Path, monkeypatch, where):
    folder = tmp_path / "results"
    folder.mkdir()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr({"plan": "pathlib.Path.replace", "plot": "slo_opt.report.figure.save"}[where], fail)
    option = {"plan": ("-o", folder / "plan.json"), "plot": ("--plot", folder / "picture.png")}[where]
    result = cli("solve", trace_path, *option)
    assert result.exit_code == 3
    assert result.stderr == f"slo-opt: error: {option[1]}: No space left on device\n"
    assert "60 offered requests attained" in result.stdout  # what was solved is not lost
    assert list(folder.iterdir()) == []


def test_no_engine_names_the_file_and_the_engines(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    del fields["engine"]
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("solve", trace_path), 3, f"{trace_path}: ", "--engine opt-6.7b-a100|opt-6.7b-a100-draft|")


def test_existing_output_survives_a_failure(cli, solvers, trace_path: Path, tmp_path: Path):
    solvers({"search": "greedy:GreedySolver", "highs": "stopped:TooLow"})
    plan = tmp_path / "plan.json"
    plan.write_text("kept")
    assert cli("solve", trace_path, "-o", plan).exit_code == 1
    assert plan.read_text() == "kept"


def test_error_names_are_not_hidden_by_the_terminal(trace_path: Path):
    """The installed script itself, as users run it: code, message, nothing on stdout."""
    script = Path(sys.executable).with_name("slo-opt")
    if not script.exists():
        pytest.skip("slo-opt is not installed as a script here")
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [str(script), "solve", str(trace_path), "--engine", "a100"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.startswith("slo-opt: error: unknown engine 'a100'")


def test_trace_format_error_is_bad_input():
    from slo_opt.cli.exits import ExitCode, exit_code_of

    assert exit_code_of(TraceFormatError("a", "b", "c", "d")) is ExitCode.BAD_INPUT
    assert exit_code_of(PermissionError(13, "denied", "x")) is ExitCode.BAD_INPUT
    assert exit_code_of(ValueError("x")) is ExitCode.UNEXPECTED


@pytest.mark.parametrize(
    ("command", "option", "where"),
    [
        (("solve",), "--prefix-cache", "it belongs to simulate."),
        (("simulate",), "--time-limit", "it belongs to solve, gap, plan."),
        (("trace", "validate"), "--policies", "it belongs to capacity, gap, plan."),
    ],
)
def test_an_option_of_another_command_is_traced_to_it(cli, trace_path: Path, command, option: str, where: str):
    assert_refused(cli(*command, trace_path, option), 2, f"no such option: {option}; {where}")
    unknown = cli(*command, trace_path, "--nonsense")
    assert unknown.exit_code == 2
    assert "belongs" not in unknown.stderr
