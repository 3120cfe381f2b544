"""The decision log: complete, bounded, never in the engine's way."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.engine_bridge.decision_log import DecisionLog, ServedRequest
from slo_opt.traces.formats.decision_log import FORMAT, VERSION, Columns

ENGINE = EngineModel("live", "learned", (RooflinePiece(1e-4, 1e-2),), kv_blocks=512)


def served(number: int, **fields: Any) -> ServedRequest:
    return ServedRequest(f"cmpl-{number}", 1.7e9 + number, 10, output_tokens=3, best_effort=True, **fields)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def ids_of(path: Path) -> list[str]:
    return [line["id"] for line in lines_of(path) if "id" in line]


def wait_for(condition: Any) -> None:
    """Until the writing thread has done something; the test run's own limit ends a wait in vain."""
    while not condition():
        time.sleep(0.002)


def test_a_log_has_a_header_and_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "new" / "decisions.jsonl"
    log = DecisionLog(path, {"engine": ENGINE, "vllm": "vllm 0.32.0"})
    first = served(1, slo="chat", reason="no_slo")
    log.write(first)
    log.write(served(2))
    log.close()
    header, one, two, last = lines_of(path)
    assert (header["format"], header["version"]) == (last["format"], last["version"]) == (FORMAT, VERSION)
    assert header["engine"]["pieces"] == [{"per_token_s": 1e-4, "base_s": 1e-2, "per_draft_step_s": 0.0}]
    assert header["start_unix_s"] == last["start_unix_s"]
    assert msgspec.convert(one, ServedRequest) == first
    assert two["id"] == "cmpl-2"
    assert log.lost_lines == 0


def test_nothing_served_leaves_no_file(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.flush()
    log.close()
    assert not list(tmp_path.iterdir())


def test_the_reader_knows_every_field_of_the_writer() -> None:
    def fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
        return {field.name: field.default for field in msgspec.structs.fields(kind)}

    assert fields(ServedRequest) == fields(Columns)


def test_no_field_could_hold_a_prompt() -> None:
    texts = {field.name for field in msgspec.structs.fields(ServedRequest) if field.type is str}
    assert texts == {"id", "slo", "outcome", "reason"}
    assert not any("list" in str(field.type) for field in msgspec.structs.fields(ServedRequest))


def test_lines_are_written_by_count_and_by_time(tmp_path: Path) -> None:
    by_count = DecisionLog(tmp_path / "count.jsonl", flush_lines=3, flush_s=1e6)
    for number in range(3):
        by_count.write(served(number))
    wait_for(lambda: (tmp_path / "count.jsonl").exists() and len(ids_of(tmp_path / "count.jsonl")) == 3)
    by_time = DecisionLog(tmp_path / "time.jsonl", flush_lines=1000, flush_s=0.01)
    by_time.write(served(0))
    wait_for(lambda: (tmp_path / "time.jsonl").exists() and ids_of(tmp_path / "time.jsonl"))
    by_count.close()
    by_time.close()


def test_the_last_header_has_what_was_learned(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    engines = [ENGINE]
    log = DecisionLog(path, lambda: {"engine": engines[-1]}, flush_s=1e6, header_s=0.0)
    log.write(served(1))
    engines.append(replace(ENGINE, host_s=0.5))
    log.flush()
    log.close()
    assert [line["engine"]["host_s"] for line in lines_of(path) if "engine" in line] == [0.0, 0.5, 0.5]


def test_a_description_that_fails_is_no_error(tmp_path: Path) -> None:
    def about() -> dict[str, Any]:
        raise KeyError("engine")

    log = DecisionLog(tmp_path / "decisions.jsonl", about)
    log.write(served(1))
    log.close()
    assert ids_of(tmp_path / "decisions.jsonl") == ["cmpl-1"]


def test_files_turn_over_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, max_bytes=300, keep=2, flush_s=1e6)
    for number in range(12):
        log.write(served(number))
        log.flush()
    log.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["decisions.jsonl", "decisions.jsonl.1", "decisions.jsonl.2"]
    kept = [ids_of(tmp_path / name) for name in reversed(names)]
    flat = [name for part in kept for name in part]
    assert flat == [f"cmpl-{number}" for number in range(12 - len(flat), 12)]
    for name in names:
        assert lines_of(tmp_path / name)[0]["format"] == FORMAT


def test_an_earlier_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    for number in (1, 2):
        log = DecisionLog(path)
        log.write(served(number))
        log.close()
    assert ids_of(path) == ["cmpl-2"]
    assert ids_of(tmp_path / "decisions.jsonl.1") == ["cmpl-1"]


def test_a_folder_in_the_way_costs_lines_not_the_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    lost: list[int] = []
    log = DecisionLog(tmp_path / "file" / "decisions.jsonl", on_loss=lost.append, flush_s=1e6)
    for number in range(5):
        log.write(served(number))
    log.flush()
    log.write(served(5))
    log.close()
    assert log.lost_lines == sum(lost) == 7  # the last header, too
    assert len(caplog.records) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_lines_not_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, keep=0, flush_s=1e6)
    log.write(served(0))
    log.flush()
    path.unlink()
    path.symlink_to("/dev/full")
    log.write(served(1))
    log.flush()
    assert log.lost_lines == 1
    path.unlink()
    path.touch()
    log.write(served(2))
    log.close()
    assert ids_of(path) == ["cmpl-2"]
    assert log.lost_lines == 1


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, flush_s=1e6)
    log.write(served(0))
    log.flush()
    whole = path.read_bytes()
    real_open = Path.open

    class Full:
        """A file that takes ten bytes more."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 10

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            count: int = self.file.write(data[: self.left])
            self.left -= count
            return count

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(Path, "open", lambda self, *args, **options: Full(real_open(self, *args, **options)))
    log.write(served(1))
    log.flush()
    monkeypatch.undo()
    assert path.read_bytes() == whole
    log.write(served(2))
    log.close()
    assert ids_of(path) == ["cmpl-0", "cmpl-2"]
    assert log.lost_lines == 1


def test_a_disk_that_hangs_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    lost: list[int] = []
    log = DecisionLog(tmp_path / "decisions.jsonl", flush_lines=1, flush_s=0.01, max_waiting=4, on_loss=lost.append)

    def append(data: bytes) -> None:
        hangs.set()
        goes_on.wait()

    monkeypatch.setattr(log._lines, "_append", append)
    log.write(served(0))
    hangs.wait()
    for number in range(10):
        log.write(served(number))
    assert log.lost_lines == sum(lost) == 6
    monkeypatch.setattr("slo_opt.engine_bridge.decision_log._CLOSING_S", 0.01)
    log.close()
    log.write(served(99))
    assert log.lost_lines == 7
    goes_on.set()


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=30), flush_lines=st.integers(1, 40))
def test_any_text_stays_on_its_line(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], flush_lines: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    log = DecisionLog(path, flush_lines=flush_lines, flush_s=0.001)
    for text in texts:
        log.write(ServedRequest(text, 1.7e9, 1, slo=text, reason=text))
    log.close()
    assert log.lost_lines == texts_that_utf8_cannot_hold(texts)
    assert ids_of(path) == [text for text in texts if encodable(text)]


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts_that_utf8_cannot_hold(texts: list[str]) -> int:
    return sum(not encodable(text) for text in texts)
