"""Damaged plan files: each is refused with the file and the place."""

import json
from pathlib import Path
from typing import Any

import pytest

from slo_opt import Instance, Schedule
from slo_opt.analysis.plan import encode_plan, read_plan
from slo_opt.domain.errors import TraceFormatError


@pytest.fixture
def fields(burst: Instance, burst_plan: Schedule) -> dict[str, Any]:
    return json.loads(encode_plan({}, burst, burst_plan))


def refused(fields: dict[str, Any] | str, tmp_path: Path) -> TraceFormatError:
    path = tmp_path / "broken.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    with pytest.raises(TraceFormatError) as caught:
        read_plan(path)
    assert caught.value.path.startswith(str(path))
    return caught.value


def test_an_undamaged_plan_comes_back(fields, burst: Instance, burst_plan: Schedule, tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    found = read_plan(path)
    assert found.instance.requests == burst.requests
    assert found.schedule is not None
    assert found.schedule.to_dict() == burst_plan.to_dict()


@pytest.mark.parametrize("value", [-1, 10**6, 1e30, 10**30, 0.5, "1", None])
@pytest.mark.parametrize("key", ["admitted", "request"])
def test_an_index_that_names_no_request(fields, tmp_path: Path, key: str, value: object):
    fields["schedule"][key][2] = value
    error = refused(fields, tmp_path)
    assert error.place.startswith(f"$.schedule.{key}[")


@pytest.mark.parametrize("value", [1.5, 1e30, -3, 10**30, 1 << 53])
def test_tokens_that_no_batch_can_have(fields, tmp_path: Path, value: float):
    fields["schedule"]["tokens"][0] = value
    assert refused(fields, tmp_path).place.startswith("$.schedule")


def test_preempted_requests_are_looked_at_too(fields, tmp_path: Path):
    fields["schedule"]["preempted"] = {"0": [10**6]}
    assert refused(fields, tmp_path).place == "$.schedule.preempted[0][0]"


@pytest.mark.parametrize("key", ["report", "trace", "schedule", "extra"])
def test_deep_nesting(fields, tmp_path: Path, key: str):
    text = json.dumps({**fields, key: "HERE"}).replace('"HERE"', "[" * 100_000 + "]" * 100_000)
    refused(text, tmp_path)


@pytest.mark.parametrize("value", [0, -1, 1.5, "two", None])
def test_replicas(fields, tmp_path: Path, value: object):
    fields["num_replicas"] = value
    assert refused(fields, tmp_path).place == "$.num_replicas"


def test_no_engine(fields, tmp_path: Path):
    del fields["trace"]["engine"]
    assert refused(fields, tmp_path).place == "$.trace.engine"
