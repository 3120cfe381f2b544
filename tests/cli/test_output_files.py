"""Where results go: links, pipes, devices, gzip, and pictures of what there is."""

import gzip
import json
import os
import threading
from pathlib import Path

import pytest

from slo_opt.analysis.plan import read_plan

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


@pytest.mark.parametrize("command", ["solve", "convert"])
def test_a_pipe_is_written_to_not_replaced(cli, trace_path: Path, tmp_path: Path, command: str):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    words = {"solve": ("solve",), "convert": ("trace", "convert")}[command]
    assert cli(*words, trace_path, "-o", pipe).exit_code == 0
    reader.join(10)
    assert pipe.is_fifo()
    assert json.loads(got[0])["format"].startswith("slo-opt-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named_and_the_result_is_printed(cli, trace_path: Path):
    result = cli("solve", trace_path, "-o", "/dev/full")
    assert result.exit_code == 3
    assert result.stderr == "slo-opt: error: /dev/full: No space left on device\n"
    assert "60 offered requests attained" in result.stdout
    result = cli("trace", "convert", trace_path, "-o", "/dev/full")
    assert (result.exit_code, result.stderr) == (3, "slo-opt: error: /dev/full: No space left on device\n")


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
