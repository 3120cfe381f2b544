"""Lines added to one file by many writers, and runs that come back from it as they went in."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slo_opt.analysis.compare import compare_runs
from slo_opt.analysis.origin import Origin
from slo_opt.analysis.runs import read_runs, record_of
from slo_opt.domain.instance import Instance
from slo_opt.policies.registry import POLICIES, PolicyContext, full_setting, make_policy
from slo_opt.simulate.play import play
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.traces.atomic import append_line


def recorded(instance: Instance, seed: int = 0, **setting):
    options = SimulationOptions(seed=seed, noise=0.1)
    run = play(instance, "vllm-fcfs", setting, "none", options)
    origin = Origin("burst.json", None, None, 1.0, len(instance.requests), 0, {"seed": 3})
    return record_of(run, setting=setting, lengths="none", origin=origin, options=options, wall_s=0.25)


def test_a_record_comes_back_as_it_went_in(burst: Instance, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    records = [recorded(burst), recorded(burst, seed=1), recorded(burst, budget_tokens=512)]
    for record in records:
        append_line(path, record.encode())
    assert read_runs(path) == records
    (group,), replaced = compare_runs(read_runs(path))
    assert replaced == 0
    assert sorted(len(row.runs) for row in group.rows) == [1, 2]


def test_lines_of_many_writers_stay_whole(tmp_path: Path):
    path = tmp_path / "lines"
    lines = [bytes([65 + k % 26]) * (1000 + 37 * k) for k in range(120)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda line: append_line(path, line), lines))
    assert sorted(path.read_bytes().splitlines()) == sorted(lines)


def test_a_line_without_its_end_is_not_joined(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"one")
    append_line(path, b"two")
    append_line(path, b"three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("name", POLICIES)
def test_the_full_setting_is_one_that_makes_the_policy(burst: Instance, name: str):
    entry = POLICIES[name]
    context = PolicyContext(burst.engine, burst.slo_classes, None)
    for setting in entry.settings:
        full = full_setting(name, setting)
        assert full.items() >= setting.items()
        assert make_policy(name, context, full).name == name
