"""Sweeps over Ray: the same results as without."""

import sys

import pytest

from slo_opt.domain.errors import InvalidInputError, SolverNotAvailableError
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile
from slo_opt.simulate.tasks import Task

UNIT = "slo_opt.analysis.gap:run_unit"
INSTANCE = {
    "kind": "scenario",
    "scenario": "coder",
    "engine": "opt-6.7b-a100",
    "rate": 2.0,
    "duration_s": 10.0,
    "seed": 0,
    "score_rule": "dslo",
}
OPTIONS = {"seed": 0, "noise": 0.0, "slowdown": 1.0, "acceptance": 0.0, "max_lost": None}


def tasks() -> list[Task]:
    """Two policies on one small workload."""
    common = {"instance": INSTANCE, "lengths": "none", "simulation": OPTIONS, "all_settings": False}
    names = ("vllm-fcfs", "edf")
    return [Task(UNIT, {**common, "policy": name}, name, {"place": None}) for name in names]


def test_a_local_ray_gives_the_results_of_this_process():
    pytest.importorskip("ray", reason="ray is not installed")
    with ResultsFile(None) as here, ResultsFile(None) as there:
        expected = run_tasks(tasks(), Pool(), here)
        assert run_tasks(tasks(), Pool(1, "local"), there) == expected


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with ResultsFile(None) as results, pytest.raises(SolverNotAvailableError, match=r"slo-opt\[ray\]"):
        run_tasks(tasks(), Pool(1, "local"), results)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_listens_is_refused(address: str):
    pytest.importorskip("ray", reason="ray is not installed")
    with ResultsFile(None) as results, pytest.raises(InvalidInputError, match=f"--ray {address}: cannot be reached"):
        run_tasks(tasks(), Pool(1, address), results)
