"""The step log: what is written is read, what is damaged is named, and nothing reaches the engine."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import TraceFormatError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.step_log import StepLog, read_step_log, read_steps

SAMPLES = st.builds(
    BatchSample,
    num_tokens=st.integers(1, 10**6),
    decode_context_tokens=st.floats(0, 1e8),
    prefill_pairs=st.floats(0, 1e12),
    num_requests=st.integers(0, 4096),
    draft_steps=st.integers(0, 32),
    seconds=st.floats(1e-7, 1e4),
)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def written(path: Path, samples: list[BatchSample], **options) -> StepLog:
    log = StepLog(path, {"engine": engine_named("llama-3-8b-h100"), "vllm": "0.32.0", "policy": "slo-opt"}, **options)
    for k, sample in enumerate(samples):
        log.write(sample, None if k % 3 == 0 else k / 100)
    log.close()
    return log


@given(samples=st.lists(SAMPLES, min_size=1, max_size=20))
def test_what_is_written_is_read(samples: list[BatchSample], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "steps.jsonl"
    written(path, samples)
    records = read_steps(path)
    assert list(records.samples) == samples
    assert records.predicted_s == tuple(None if k % 3 == 0 else k / 100 for k in range(len(samples)))
    assert records.engine == engine_named("llama-3-8b-h100")
    assert records.vllm == "0.32.0"
    assert records.warning is None
    (path.parent / "steps.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_step_log(path.parent / "steps.jsonl.gz")) == samples


@given(
    sample=st.builds(
        BatchSample,
        num_tokens=st.integers(-5, 5),
        decode_context_tokens=st.floats(),
        prefill_pairs=st.floats(),
        num_requests=st.integers(-5, 5),
        draft_steps=st.integers(-5, 5),
        seconds=st.floats(),
    )
)
def test_only_what_can_be_read_is_written(sample: BatchSample, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "steps.jsonl"
    log = written(path, [sample, BatchSample(1, seconds=0.01)])
    assert log.skipped == (not sample.usable)
    assert len(read_steps(path).samples) == 2 - log.skipped


def test_lines_wait_for_a_number_or_a_time(tmp_path: Path):
    clock, path, sample = Clock(), tmp_path / "sub" / "steps.jsonl", BatchSample(1, seconds=0.01)
    log = StepLog(path, flush_lines=4, flush_s=5.0, clock=clock)
    for _ in range(3):
        log.write(sample)
    assert not path.exists()
    log.write(sample)
    assert len(read_steps(path).samples) == 4
    log.write(sample)
    clock.now_s = 5.0
    assert len(read_steps(path).samples) == 4
    log.write(sample)
    assert len(read_steps(path).samples) == 6


def test_the_size_is_bounded_and_each_part_has_its_header(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    path.write_text("of an earlier run\n")
    written(path, [BatchSample(k + 1, seconds=0.01) for k in range(500)], flush_lines=10, max_bytes=6000, keep=2)
    parts = [path, tmp_path / "steps.jsonl.1", tmp_path / "steps.jsonl.2"]
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    kept = [read_steps(part) for part in reversed(parts)]
    tokens = [sample.num_tokens for records in kept for sample in records.samples]
    assert tokens == list(range(tokens[0], 501))
    assert all(part.stat().st_size < 9000 for part in parts)
    assert all(records.engine is not None for records in kept)


def test_no_older_part_is_kept_where_none_is_wanted(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    written(path, [BatchSample(k + 1, seconds=0.01) for k in range(100)], flush_lines=10, max_bytes=2000, keep=0)
    assert list(tmp_path.iterdir()) == [path]
    assert read_steps(path).samples[-1].num_tokens == 100


def test_the_engine_never_hears_of_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("no folder")
    log = written(tmp_path / "file" / "steps.jsonl", [BatchSample(1, seconds=0.01)] * 10, flush_lines=4)
    assert log.lost_lines == 10
    assert len(caplog.records) == 1
    assert "step log" in caplog.text
    odd = StepLog(tmp_path / "odd.jsonl", {"engine": object()})
    odd.write(BatchSample(1, seconds=0.01))
    odd.close()
    assert odd.lost_lines == 1


def lines_of(tmp_path: Path) -> tuple[Path, list[str]]:
    path = tmp_path / "steps.jsonl"
    written(path, [BatchSample(k + 1, seconds=0.01) for k in range(3)])
    return path, path.read_text().splitlines()


def test_a_last_line_that_is_cut_short_is_left_out(tmp_path: Path):
    path, lines = lines_of(tmp_path)
    path.write_text("\n".join([*lines[:3], lines[3][:20]]))
    with pytest.warns(UserWarning, match="line 4 is cut short"):
        assert len(read_step_log(path)) == 2
    path.write_text("\n".join([*lines[:2], lines[2][:20], lines[3]]))
    with pytest.raises(TraceFormatError, match="line 3: is not JSON"):
        read_step_log(path)


@pytest.mark.parametrize(
    ("line", "change", "words"),
    [
        (1, {"num_tokens": "4"}, "line 2: num_tokens: expected an integer"),
        (2, {"seconds": -1}, "line 3: is no batch"),
        (2, {"seconds": None}, "line 3: seconds: expected a number"),
        (3, {"num_requests": 1.5}, "line 4: num_requests: expected an integer"),
        (0, {"format": "slo-opt-decisions"}, "format 'slo-opt-decisions'"),
        (0, {"version": 2}, "version 2"),
        (0, {"engine": {"name": "x"}}, "line 1: is no header"),
        (0, {"engine": {"name": "x", "source": "y", "pieces": []}}, "no roofline piece"),
    ],
)
def test_damage_is_named(tmp_path: Path, line: int, change: dict[str, object], words: str):
    path, lines = lines_of(tmp_path)
    lines[line] = json.dumps({**json.loads(lines[line]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TraceFormatError) as error:
        read_steps(path)
    assert words in str(error.value)


def test_a_missing_field_and_an_empty_log_are_named(tmp_path: Path):
    path, lines = lines_of(tmp_path)
    step = json.loads(lines[1])
    del step["seconds"]
    path.write_text("\n".join([lines[0], json.dumps(step)]))
    with pytest.raises(TraceFormatError, match="line 2: field 'seconds' is missing"):
        read_steps(path)
    path.write_text(lines[0])
    with pytest.raises(TraceFormatError, match="holds no batch"):
        read_steps(path)


@given(text=st.text(max_size=300))
def test_any_text_is_refused_with_a_place(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "any.jsonl"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(TraceFormatError, match=r"line \d+|file"):
        read_steps(path)
