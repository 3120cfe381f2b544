"""A small trace in a file, and the command line run in this process with real, small solvers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slo_opt.cli.main import app
from slo_opt.domain.instance import Instance
from slo_opt.solvers import registry
from slo_opt.traces.read import read_trace
from slo_opt.traces.write import write_trace

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # the registry loads the solvers of greedy.py by name

Cli = Callable[..., Any]


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    """The first 60 requests of the shipped example: the burst overloads the engine."""
    trace = read_trace(ROOT / "examples" / "coder-burst.json")
    path = tmp_path / "small.json"
    write_trace(replace(trace, name="small", requests=trace.requests[:60], provenance={}), path)
    return path


@pytest.fixture
def instance(trace_path: Path) -> Instance:
    """The same as an instance."""
    return read_trace(trace_path).to_instance()


@pytest.fixture
def cli() -> Cli:
    """Run the command line; the result has exit_code, stdout and stderr."""
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(arg) for arg in args], prog_name="slo-opt")


@pytest.fixture
def solvers(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Replace the known methods by others, given as ``module:class``."""

    def replace_all(table: dict[str, str]) -> None:
        monkeypatch.setattr(registry, "SCHEDULE_SOLVERS", table)

    return replace_all


@pytest.fixture
def small_solvers(solvers: Callable[[dict[str, str]], None]) -> Sequence[str]:
    """Real, quick methods under the default names."""
    solvers({"search": "greedy:GreedySolver", "highs": "greedy:EngineTimeBound"})
    return ("search", "highs")
