"""The greedy scheduler of the command line's tests, on the shipped example."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.traces.read import read_trace

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cli"))


@pytest.fixture(scope="session")
def burst() -> Instance:
    """The first 120 requests of the shipped example."""
    trace = read_trace(ROOT / "examples" / "coder-burst.json")
    return replace(trace, requests=trace.requests[:120]).to_instance()


@pytest.fixture(scope="session")
def burst_plan(burst: Instance) -> Schedule:
    """A real plan of it that declines many."""
    from greedy import greedy_schedule

    return greedy_schedule(burst)
