"""Sweeps: every unit once, wherever it runs; what has finished stays."""

import json
from pathlib import Path

import pytest

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.simulate.pool import Pool, WorkerLostError, run_tasks
from slo_opt.simulate.results_file import ResultsFile
from slo_opt.simulate.tasks import Task


def squares(count: int, log: Path | None = None, call: str = "sweep_units:square") -> list[Task]:
    """Tasks 0 to count - 1."""
    where = {} if log is None else {"log": str(log)}
    return [Task(call, {"number": k}, f"number {k}", where) for k in range(count)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_runs_once_and_results_keep_their_order(tmp_path: Path, jobs: int):
    log = tmp_path / "log"
    tasks = squares(7, log)
    told: list[float] = []
    with ResultsFile(None) as results:
        found = run_tasks([*tasks, *tasks[:2]], Pool(jobs), results, lambda phrase, done: told.append(done or 0.0))
    assert [item["square"] for item in found] == [0, 1, 4, 9, 16, 25, 36, 0, 1]
    assert sorted(map(int, log.read_text().split())) == list(range(7))
    assert len({item["process"] for item in found}) == jobs
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_finished_units_are_not_run_again(tmp_path: Path):
    log, path = tmp_path / "log", tmp_path / "results.jsonl"
    with ResultsFile(path) as results:
        run_tasks(squares(3, log), Pool(), results)
    before = path.read_bytes()
    with ResultsFile(path, must_exist=True) as results:
        found = run_tasks(squares(5, log), Pool(), results)
    assert [item["square"] for item in found] == [0, 1, 4, 9, 16]
    assert log.read_text().split() == ["0", "1", "2", "3", "4"]
    assert path.read_bytes().startswith(before)
    assert [json.loads(line)["inputs"]["number"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]


def test_the_place_of_a_file_is_no_part_of_the_key_and_inputs_are(tmp_path: Path):
    assert squares(1)[0].key == squares(1, tmp_path)[0].key
    keys = {task.key for task in squares(3)} | {Task("sweep_units:refuse", {"number": 0}, "").key}
    assert len(keys) == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_raised_as_it_was_and_costs_no_finished_unit(tmp_path: Path, jobs: int):
    path = tmp_path / "results.jsonl"
    tasks = squares(8) + squares(2, call="sweep_units:refuse_odd")
    with ResultsFile(path) as results, pytest.raises(InvalidInputError, match=r"^1 is odd$"):
        run_tasks(tasks, Pool(jobs), results)
    with ResultsFile(path) as results:  # what the other process was at may be missing
        assert len({task.key for task in tasks} & results.results.keys()) >= 8
        assert tasks[-1].key not in results.results


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_with_odd_constructors_and_defects_arrive(jobs: int):
    with ResultsFile(None) as results:
        with pytest.raises(TraceFormatError, match=r"trace\.json.*line 7.*Mend it"):
            run_tasks([*squares(1), Task("sweep_units:refuse", {}, "refusal")], Pool(jobs), results)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            run_tasks([*squares(2), Task("sweep_units:break_down", {}, "defect")], Pool(jobs), results)


def test_a_worker_that_dies_is_noticed(tmp_path: Path):
    with ResultsFile(None) as results, pytest.raises(WorkerLostError, match=r"sudden death.*exit code 9"):
        run_tasks([*squares(1), Task("sweep_units:crash", {}, "sudden death")], Pool(2), results)


def test_no_process_is_refused():
    with pytest.raises(InvalidInputError, match="at least 1"):
        Pool(0)


def test_a_line_cut_short_is_dropped_and_run_again(tmp_path: Path):
    log, path = tmp_path / "log", tmp_path / "results.jsonl"
    with ResultsFile(path) as results:
        run_tasks(squares(3, log), Pool(), results)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with ResultsFile(path) as results:
        assert len(results.results) == 2
        found = run_tasks(squares(3, log), Pool(), results)
    assert [item["square"] for item in found] == [0, 1, 4]
    assert log.read_text().split() == ["0", "1", "2", "2"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["inputs"]["number"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("line", ["not json", "[1]", "{}", '{"schema": "slo-opt-run", "key": "k", "result": {}}'])
def test_a_foreign_file_is_left_as_it_is(tmp_path: Path, line: str):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\nmore")
    with pytest.raises(TraceFormatError, match=r"line 1.*is no result of a sweep"):
        ResultsFile(path)
    assert path.read_text() == f"{line}\nmore"


def test_a_file_has_one_writer_and_must_be_there_to_resume(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(InvalidInputError, match="no such file to go on with"):
        ResultsFile(path, must_exist=True)
    with ResultsFile(path), pytest.raises(InvalidInputError, match="another run is writing"):
        ResultsFile(path)
    ResultsFile(path).close()
