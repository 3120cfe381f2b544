"""Gap tables: bounds above every run, and no bound where none holds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from slo_opt.analysis.gap import GapRequest, bound_unit, run_unit
from slo_opt.analysis.gap_source import ScenarioSource, TraceSource, instance_of
from slo_opt.analysis.gap_table import gap_document
from slo_opt.analysis.solve import UnsoundBoundError
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fingerprint import requests_hash
from slo_opt.policies.registry import POLICIES
from slo_opt.simulate.simulator import SimulationOptions

EXAMPLE = Path(__file__).parents[2] / "examples" / "coder-burst.json"
SOURCE = ScenarioSource("mixed", "opt-6.7b-a100", 2.0, 20.0)


def request(**changes) -> GapRequest:
    fields = {"source": SOURCE, "loads": (1.0, 2.0), "policies": ("vllm-fcfs", "edf"), "time_limit_s": 20.0}
    return GapRequest(**{**fields, **changes})


@pytest.fixture(scope="module")
def results() -> dict:
    """Every unit of a small table, class bounds included."""
    asked = request(class_bounds=True)
    found: dict = {}
    units = {"bound_unit": bound_unit, "run_unit": run_unit}
    for tasks in (asked.tasks, lambda: asked.class_tasks(found)):
        for task in tasks():
            found[task.key] = json.loads(json.dumps(units[task.call.split(":")[1]](task.inputs, **task.where)))
    return found


def test_shares_are_value_over_bound(results: dict):
    document = gap_document(request(), results)
    assert document["complete"]
    assert document["no_bound"] is None
    assert [row["rate"] for row in document["loads"]] == [2.0, 4.0]
    assert [row["offered"] for row in document["loads"]] == [40, 80]
    for row in document["loads"]:
        assert 0 < row["bound"] <= row["offered_value"]
        for policy in row["policies"]:
            assert policy["of_bound"] == pytest.approx(policy["value"] / row["bound"])
            assert policy["of_offered"] == pytest.approx(policy["value"] / row["offered"])
            assert policy["value"] <= row["bound"]
            assert sum(entry["attained"] for entry in policy["classes"]) == policy["attained"]
            assert sum(entry["offered"] for entry in policy["classes"]) == row["offered"]
    json.dumps(document, allow_nan=False)


def test_class_bounds_hold_and_are_no_weaker_than_without_a_solve(results: dict):
    loose = gap_document(request(), results)["loads"]
    tight = gap_document(request(class_bounds=True), results)["loads"]
    for first, second in zip(loose, tight, strict=True):
        assert len(first["class_bounds"]) == 5
        assert all(second["class_bounds"][name] <= limit for name, limit in first["class_bounds"].items())
        for policy in second["policies"]:
            for entry in policy["classes"]:
                assert entry["value"] <= entry["bound"]


def test_best_settings_are_at_least_as_good_as_the_default(results: dict):
    task = request(all_settings=False).run_task(2.0, "vllm-fcfs")
    default = run_unit(task.inputs, **task.where)
    best = results[request().run_task(2.0, "vllm-fcfs").key]
    assert default["setting"] == POLICIES["vllm-fcfs"].settings[0]
    assert len(best["values"]) == len(POLICIES["vllm-fcfs"].settings)
    assert best["value"] == max(best["values"]) >= best["values"][0] == default["value"]


def test_a_run_above_the_bound_stops_everything(results: dict):
    key = request().run_task(1.0, "edf").key
    bound = results[request().bound_task(1.0).key]["bound"]
    for change in ({"value": bound + 1}, {"values": [bound + 1]}):
        with pytest.raises(UnsoundBoundError, match=r"mixed.*load 1.*'edf'.*model is wrong"):
            gap_document(request(), {**results, key: {**results[key], **change}})
    task = request(class_bounds=True).bound_task(1.0, "code")
    with pytest.raises(UnsoundBoundError, match="class 'code'"):
        gap_document(request(class_bounds=True), {**results, task.key: {**results[task.key], "bound": 0.0}})


def test_what_has_finished_is_shown_and_said_to_be_part(results: dict):
    keys = {request().bound_task(1.0).key, request().run_task(1.0, "edf").key}
    document = gap_document(request(), {key: value for key, value in results.items() if key in keys})
    assert not document["complete"]
    assert [row["load"] for row in document["loads"]] == [1.0]
    assert [policy["policy"] for policy in document["loads"][0]["policies"]] == ["edf"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (SimulationOptions(acceptance=0.7), "speculation"),
        (SimulationOptions(noise=0.1), "noise"),
        (SimulationOptions(slowdown=0.9), "quicker"),
    ],
)
def test_no_bound_where_the_engine_may_beat_its_model(options: SimulationOptions, reason: str):
    asked = request(simulation=options, loads=(1.0,), policies=("edf",))
    assert [task.call.split(":")[1] for task in asked.tasks()] == ["run_unit"]
    found = {task.key: run_unit(task.inputs, **task.where) for task in asked.tasks()}
    document = gap_document(asked, found)
    (row,) = document["loads"]
    assert reason in document["no_bound"]
    assert row["bound"] is None
    assert row["policies"][0]["of_bound"] is None
    assert row["policies"][0]["of_offered"] is not None


def test_a_slower_engine_keeps_its_bound():
    asked = request(simulation=SimulationOptions(slowdown=1.2))
    assert asked.no_bound is None
    assert "other times" in gap_document(asked, {})["gaps"]["execution"]
    assert gap_document(request(), {})["gaps"]["execution"].startswith("none")


def test_a_trace_is_read_as_asked(tmp_path: Path):
    source = TraceSource(EXAMPLE, engine="llama-3-8b-a100", window=(0.0, 5.0))
    instance = instance_of(json.loads(json.dumps(source.inputs(2.0))), **source.where)
    assert instance.engine.name == "llama-3-8b-a100"
    assert instance.requests[-1].arrival_s <= 2.5
    copy = tmp_path / "copy.json"
    copy.write_bytes(EXAMPLE.read_bytes())
    moved = replace(source, path=copy)
    assert moved.inputs(2.0) == source.inputs(2.0), "the place does not matter"
    assert requests_hash(instance_of(moved.inputs(2.0), **moved.where)) == requests_hash(instance)
    other = tmp_path / "other.json"
    other.write_bytes(EXAMPLE.read_bytes() + b"\n")
    assert replace(source, path=other).inputs(2.0) != source.inputs(2.0), "the content does"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loads": ()}, "at least one load"),
        ({"loads": (0.0,)}, "load 0"),
        ({"loads": (math.nan,)}, "load nan"),
        ({"policies": ("edff",)}, "Did you mean 'edf'"),
        ({"lengths": "non"}, "Did you mean 'none'"),
        ({"time_limit_s": 0.0}, "time limit"),
    ],
)
def test_refusals(changes: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        request(**changes)
