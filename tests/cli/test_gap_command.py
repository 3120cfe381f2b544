"""`slo-opt gap`: shares of the bound, the refusal of unsound ones, and where there is none."""

import json
from pathlib import Path

import jsonschema
import pytest
from test_exit_codes import assert_refused

from slo_opt.domain.evaluate import evaluate

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "slo_opt/report/gap.schema.json").read_text())
SMALL = ("--scenario", "toolllm", "--engine", "opt-6.7b-a100", "--duration", "10", "--jobs", "1")


def document_of(result) -> dict:
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def test_a_trace_at_two_scales(cli, trace_path: Path, small_solvers, tmp_path: Path):
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "gap.jsonl", tmp_path / "gap.svg"
    asked = ("gap", trace_path, "--scales", "0.5,2", "--policies", "vllm-fcfs,edf", "--jobs", "1", "-o", path)
    document = document_of(cli(*asked, "--format", "json", "--plot", plot))
    assert [row["load"] for row in document["loads"]] == [0.5, 2.0]
    assert document["gaps"]["information"].startswith("shown")
    for row in document["loads"]:
        assert row["offered"] == 60
        for policy in row["policies"]:
            assert policy["attained"] <= row["bound"]
            assert policy["of_bound"] == pytest.approx(policy["attained"] / row["bound"])
    assert plot.read_text().count("<svg") == 1
    assert len(path.read_text().splitlines()) == 6
    table = cli(*asked)
    assert "6 of 6 runs are in" in table.stderr
    share = document["loads"][1]["policies"][1]["of_bound"]
    assert f"{100 * share:.1f} %" in table.stdout
    assert "No schedule exceeds the bound" in table.stdout


def test_a_workload_at_multiples_of_a_capacity(cli, small_solvers):
    asked = ("gap", *SMALL, "--policies", "edf", "--reference", "vllm-fcfs", "--loads", "1,2", "--class-bounds")
    document = document_of(cli(*asked, "--format", "json"))
    rates = [row["rate"] for row in document["loads"]]
    assert rates[1] == pytest.approx(2 * rates[0])
    assert document["instance"]["rate"] == pytest.approx(rates[0])
    assert all(row["offered"] == pytest.approx(10 * row["rate"], abs=1) for row in document["loads"])
    same = document_of(
        cli("gap", *SMALL, "--policies", "edf", "--rate", rates[0], "--loads", "1,2", "--format", "json")
    )
    assert [row["requests_hash"] for row in same["loads"]] == [row["requests_hash"] for row in document["loads"]]


def test_a_bound_below_a_run_is_an_error_and_shows_no_figure(cli, trace_path: Path, solvers, tmp_path: Path):
    solvers({"highs": "stopped:TooLow"})
    result = cli("gap", trace_path, "--policies", "edf", "--jobs", "1", "-o", tmp_path / "gap.jsonl")
    assert_refused(result, 1, "model is wrong", "edf")


def test_a_solver_that_breaks_costs_no_finished_run(cli, trace_path: Path, solvers, tmp_path: Path):
    solvers({"highs": "stopped:Broken"})
    result = cli("gap", trace_path, "--policies", "edf", "--jobs", "1")
    assert_refused(result, 1, "bound failed", "ZeroDivisionError")


def test_an_interrupted_bound_is_no_bound(cli, trace_path: Path, solvers, tmp_path: Path):
    solvers({"highs": "stopped:Interrupted"})
    path = tmp_path / "gap.jsonl"
    result = cli("gap", trace_path, "--policies", "edf", "--jobs", "1", "-o", path)
    assert_refused(result, 130, "interrupted; 0 finished runs")
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [(("--acceptance", "0.7"), "speculation"), (("--noise", "0.1"), "noise"), (("--slowdown", "0.8"), "quicker")],
)
def test_where_the_bound_does_not_hold_it_is_left_out(cli, trace_path: Path, solvers, options, reason: str):
    solvers({"highs": "stopped:Broken"})  # not even asked
    asked = ("gap", trace_path, "--policies", "edf", "--jobs", "1", *options)
    document = document_of(cli(*asked, "--format", "json"))
    assert reason in document["no_bound"]
    assert document["loads"][0]["bound"] is None
    table = cli(*asked).stdout
    assert "No bound:" in table
    assert "attained of offered" in table


def test_every_run_shown_has_passed_the_checker(cli, trace_path: Path, small_solvers, monkeypatch: pytest.MonkeyPatch):
    from slo_opt.simulate import run

    replayed = []
    monkeypatch.setattr(run, "evaluate", lambda *given: replayed.append(given) or evaluate(*given))
    document_of(cli("gap", trace_path, "--policies", "vllm-fcfs,edf", "--jobs", "1", "--format", "json"))
    assert len(replayed) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("name a trace file", "--scenario")),
        (("--scenario", "coder"), ("--engine",)),
        (("--scenario", "codr", "--engine", "opt-6.7b-a100", "--rate", "1"), ("did you mean 'coder'",)),
        ((*SMALL, "--rate", "0"), ("rate",)),
        ((*SMALL, "--rate", "1", "--loads", "0,1"), ("--loads 0,1", "above 0")),
        ((*SMALL, "--rate", "1", "--loads", "much"), ("--loads much",)),
        ((*SMALL, "--rate", "1", "--policies", "edff"), ("did you mean 'edf'",)),
        ((*SMALL, "--reference", "slo-optt"), ("unknown policy",)),
        ((*SMALL, "--rate", "1", "--time-limit", "0"), ("time limit",)),
        (("nowhere.json",), ("nowhere.json", "no such file")),
        (("-",), ("give a file",)),
        (("trace.json", "--scales", "0"), ("--scales 0",)),
    ],
)
def test_bad_input(cli, arguments: tuple[str, ...], words: tuple[str, ...]):
    assert_refused(cli("gap", *arguments), 3, *words)


def test_usage(cli):
    assert_refused(cli("gap", "trace.json", "--rate", "1"), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace.json", "--loads", "2"),
        ("trace.json", "--reference", "edf"),
        ("trace.json", "--duration", "10"),
        (*SMALL, "--rate", "1", "--scales", "2"),
        (*SMALL, "--rate", "1", "--window", "0:10"),
        (*SMALL, "--rate", "1", "--unservable", "drop"),
        (*SMALL, "--rate", "1", "--reference", "edf"),
        (*SMALL, "--rate", "1", "--target", "0.9"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(cli, arguments: tuple[str, ...]):
    option = next(word for word in reversed(arguments) if word.startswith("--"))
    assert_refused(cli("gap", *arguments), 2, option, "of use only")


def test_a_trace_of_which_nothing_can_be_attained(cli, trace_path: Path, solvers, tmp_path: Path):
    document = json.loads(trace_path.read_text())
    for slo in document["slo_classes"]:
        slo.pop("ttft_slowdown", None)
        slo["ttft_ms"] = 1.0
    (tmp_path / "hopeless.json").write_text(json.dumps(document))
    solvers({"highs": "stopped:Broken"})  # not even asked
    for options in ((), ("--noise", "0.1")):
        result = cli("gap", tmp_path / "hopeless.json", "--policies", "edf", "--jobs", "1", *options)
        assert_refused(result, 3, "can attain any of the 60 requests", "looser SLOs")
