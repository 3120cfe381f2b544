"""`slo-opt capacity`: the table, refusals, and sweeps that go on where they stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from test_exit_codes import assert_refused

from slo_opt.policies import registry
from slo_opt.policies.registry import PolicyEntry

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "slo_opt/report/capacity.schema.json").read_text())
CELL = ("--scenario", "coder", "--engine", "opt-6.7b-a100", "--duration", "20", "--tolerance", "0.2", "--jobs", "1")


def document_of(result) -> dict:
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def test_table_and_json_say_the_same(cli, tmp_path: Path):
    path = tmp_path / "capacity.jsonl"
    asked = ("capacity", *CELL, "--policies", "vllm-fcfs,edf", "--seeds", "2", "-o", path)
    document = document_of(cli(*asked, "--format", "json"))
    (cell,) = document["cells"]
    assert [row["policy"] for row in cell["rows"]] == ["vllm-fcfs", "edf"]
    assert cell["rows"][0]["ratio"] == 1.0
    assert all(share >= 0.9 for row in cell["rows"] for share in row["attainment"])
    assert len(path.read_text().splitlines()) == 4
    table = cli(*asked)
    assert table.exit_code == 0
    assert "4 of 4 runs are in" in table.stderr
    for row in cell["rows"]:
        assert f"{row['rate_per_gpu']:.3g}" in table.stdout
        assert f"{row['ratio']:.2f}x" in table.stdout
    assert len(path.read_text().splitlines()) == 4, "nothing was run again"


def test_several_cells_have_a_geometric_mean_and_a_picture(cli, tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "bars.svg"
    result = cli(
        "capacity", *CELL, "--scenario", "coder,toolllm", "--policies", "vllm-fcfs,edf", "--plot", plot, "--quiet"
    )
    assert result.exit_code == 0, result.output
    assert "geometric mean" in result.stdout
    assert "toolllm · opt-6.7b-a100" in result.stdout
    assert plot.read_text().count("<svg") == 1


def sweep(path: Path, *options: str) -> list[str]:
    policies = "vllm-fcfs,vllm-priority,edf,sarathi"
    arguments = [*CELL, "--policies", policies, "--seeds", "3", "--tolerance", "0.01", "--duration", "40", *options]
    return [sys.executable, "-m", "slo_opt.cli.main", "capacity", *arguments, "-o", str(path)]


def lines_after(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    """Wait until the file has so many whole lines."""
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("no unit finished")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_loses_no_finished_run(tmp_path: Path, how: signal.Signals):
    path = tmp_path / "capacity.jsonl"
    pipe = subprocess.PIPE
    process = subprocess.Popen(sweep(path), stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    lines_after(path, 2, process)
    os.kill(process.pid, how)
    output, message = process.communicate()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    count = kept.count(b"\n")
    assert 2 <= count < 12, "it was to be stopped on the way"
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"{count} finished runs are kept in {path}" in message
        assert "Traceback" not in message
        assert "not complete: interrupted" in output
    result = subprocess.run(
        sweep(path, "--resume", "--format", "json"), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert f"{count} of 12 runs are in" in result.stderr
    assert json.loads(result.stdout)["complete"]
    assert path.read_bytes().startswith(kept), "finished runs stay as they are"
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--policies", "vlm-fcfs"), ("did you mean 'vllm-fcfs'",)),
        (("--policies", ","), ("--policies", "names none")),
        (("--scenario", "codr"), ("did you mean 'coder'",)),
        (("--engine", "opt-67b-a100"), ("did you mean 'opt-6.7b-a100'",)),
        (("--target", "0"), ("target",)),
        (("--target", "1.2"), ("target",)),
        (("--tolerance", "0"), ("tolerance",)),
        (("--duration", "0"), ("duration",)),
        (("--lengths", "orakle"), ("did you mean 'oracle'",)),
        (("--score-rule", "dsol"), ("did you mean 'dslo'",)),
        (("--acceptance", "1"), ("acceptance",)),
        (("--noise", "-1"), ("noise",)),
        (("--slowdown", "0"), ("slowdown",)),
        (("--data", "nowhere"), ("nowhere", "traces/azure2023_code.csv.gz")),
        (("-o", "nowhere/file.jsonl"), ("nowhere", "does not exist")),
        (("-o", "-"), ("--format json",)),
        (("--plot", "bars.txt"), (".png",)),
        (("-o", "missing.jsonl", "--resume"), ("no such file",)),
    ],
)
def test_bad_input(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...], words: tuple):
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("capacity", *CELL, *change), 3, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [("--jobs", "0"), ("--seeds", "0"), ("--resume",), ("-o", "x.png", "--plot", "x.png")]
)
def test_usage(cli, change: tuple[str, ...]):
    assert_refused(cli("capacity", *CELL, *change), 2)


def test_a_workload_that_nothing_can_attain(cli, monkeypatch: pytest.MonkeyPatch):
    from slo_opt.domain import engines
    from slo_opt.domain.engine import EngineModel, RooflinePiece

    monkeypatch.setitem(engines.ENGINES, "snail", EngineModel("snail", "", (RooflinePiece(1e-4, 2.0),)))
    result = cli("capacity", *CELL, "--engine", "snail", "--scenario", "polyserve", "--policies", "edf")
    assert_refused(result, 3, "no schedule on snail can attain any")


@pytest.mark.parametrize("command", [("capacity",), ("gap", "--rate", "1")])
def test_an_illegal_allocation_is_named(cli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]):
    monkeypatch.setitem(registry.POLICIES, "greedy", PolicyEntry("greedy", "", "rogue:Greedy"))
    cell = [word for word in CELL if word not in ("--tolerance", "0.2")]
    result = cli(*command, *cell, "--policies", "greedy", "--slowdown", "0.5")
    assert_refused(result, 3, "policy 'greedy' made an illegal allocation for request", " s: ")


def test_a_foreign_file_is_not_written_to(cli, tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    assert_refused(cli("capacity", *CELL, "-o", path), 3, "notes.txt", "line 1", "name another file")
    assert path.read_text() == "my notes\n"


def test_without_ray_the_extra_is_named(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_refused(cli("capacity", *CELL, "--policies", "edf", "--ray", "local"), 6, "slo-opt[ray]")
