"""Where results go: links, pipes, devices, gzip, and pictures of what there is."""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from slo_opt.analysis.plan import read_plan
from slo_opt.traces import atomic

pytestmark = pytest.mark.usefixtures("small_solvers")


def test_links_are_followed(cli, trace_path: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "plan.json"
    link.symlink_to(tmp_path / "there" / "real.json")
    for _ in range(2):  # a dangling link, then one to a file
        assert cli("solve", trace_path, "-o", link).exit_code == 0
        assert link.is_symlink()
        assert read_plan(tmp_path / "there" / "real.json").schedule is not None
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.json"]


@pytest.mark.parametrize("command", ["solve", "simulate", "convert"])
def test_a_pipe_is_written_to_not_replaced(cli, trace_path: Path, tmp_path: Path, command: str):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    words = {"convert": ("trace", "convert")}.get(command, (command,))
    assert cli(*words, trace_path, "-o", pipe).exit_code == 0
    reader.join(10)
    assert pipe.is_fifo()
    head = json.loads(got[0])
    assert head["schema" if command == "simulate" else "format"].startswith("slo-opt-")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no /dev/stdout")
def test_a_redirected_dev_stdout_is_not_replaced(trace_path: Path, tmp_path: Path):
    command = [sys.executable, "-m", "slo_opt.cli.main", "trace", "convert", str(trace_path), "-o", "/dev/stdout"]
    with (tmp_path / "log").open("wb") as log:
        before = os.fstat(log.fileno()).st_ino
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").stat().st_ino == before
    assert json.loads((tmp_path / "log").read_text())["format"] == "slo-opt-trace"


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results fail to grow beyond 1000 bytes; other files of this process, such as a log of the tests, may grow."""
    resource = pytest.importorskip("resource")
    fill = atomic._fill

    def fill_limited(path: Path, data: bytes) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            fill(path, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(atomic, "_fill", fill_limited)


@pytest.mark.parametrize("command", ["solve", "convert"])
def test_a_full_disk_is_named_and_the_result_is_printed(
    cli, trace_path: Path, tmp_path: Path, small_disk: None, command: str
):
    folder = tmp_path / "results"
    folder.mkdir()
    words = {"solve": ("solve",), "convert": ("trace", "convert")}[command]
    result = cli(*words, trace_path, "-o", folder / "out.json")
    assert result.exit_code == 3
    assert result.stderr == f"slo-opt: error: {folder / 'out.json'}: File too large\n"
    assert list(folder.iterdir()) == []
    assert ("60 offered requests attained" in result.stdout) == (command == "solve")


def test_a_plan_is_packed_where_its_name_says_so(cli, trace_path: Path, tmp_path: Path):
    for name in ("plan.json", "plan.json.gz"):
        assert cli("solve", trace_path, "-o", tmp_path / name).exit_code == 0
    packed = json.loads(gzip.decompress((tmp_path / "plan.json.gz").read_bytes()))
    assert packed["schedule"] == json.loads((tmp_path / "plan.json").read_text())["schedule"]
    assert cli("explain", tmp_path / "plan.json.gz").stdout == cli("explain", tmp_path / "plan.json").stdout


def test_a_picture_that_is_not_drawn_is_told(cli, trace_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    result = cli("solve", trace_path, "--method", "highs", "--plot", tmp_path / "p.png")
    assert result.exit_code == 0
    assert f"{tmp_path / 'p.png'} is not drawn" in result.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["p-bounds.png"]


def test_a_plan_given_to_solve_and_a_trace_given_to_explain(cli, trace_path: Path, tmp_path: Path):
    plan = tmp_path / "plan.json"
    assert cli("solve", trace_path, "-o", plan).exit_code == 0
    for command, path, words in (("solve", plan, "slo-opt explain"), ("explain", trace_path, "slo-opt solve")):
        result = cli(command, path)
        assert result.exit_code == 3
        assert words in result.stderr
        assert str(path) in result.stderr
