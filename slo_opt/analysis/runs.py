"""Runs of the simulator on record: one JSON object a line, for `compare` and for other programs."""

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from slo_opt.analysis.fleet_facts import FleetFacts
from slo_opt.analysis.origin import Origin
from slo_opt.domain.fingerprint import engine_hash, requests_hash
from slo_opt.domain.slo import ScoreRule
from slo_opt.policies.registry import full_setting
from slo_opt.simulate.metrics import RunMetrics, run_metrics
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.traces.formats.tables import in_words
from slo_opt.traces.source import load

SCHEMA = "slo-opt-run"
Value = bool | int | float | str | None
_REMEDY = "Remove the line, or give a file that `slo-opt simulate -o` wrote."


@dataclass(frozen=True, slots=True)
class Named:
    """What a result is about.

    Parameters
    ----------
    name : str
        For people.
    hash : str
        For programs: equal iff the figures are.
    """

    name: str
    hash: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run with all that is needed to trust, repeat and compare it.

    Parameters
    ----------
    policy : str
        Its name.
    setting : mapping
        All its keywords, defaults included.
    lengths : str
        What it knew of output lengths.
    score_rule : ScoreRule
        What counts as attained.
    engine, requests : Named
        What ran, and what was served.
    trace : Origin
        Where the requests came from.
    limits : mapping
        By SLO class, its limits.
    simulation : SimulationOptions
        Seed, noise, model error, acceptance.
    metrics : RunMetrics
        The outcome.
    wall_s : float
        Seconds that the simulation took on the machine of the run.
    versions : mapping of str to str
        Software.
    fleet : FleetFacts or None
        Where several replicas served, or might have.
    schema, schema_version
        Of this layout.
    """

    policy: str
    setting: dict[str, Value]
    lengths: str
    score_rule: ScoreRule
    engine: Named
    requests: Named
    trace: Origin
    limits: dict[str, dict[str, float]]
    simulation: SimulationOptions
    metrics: RunMetrics
    wall_s: float
    versions: dict[str, str]
    fleet: FleetFacts | None = None
    schema: Literal["slo-opt-run"] = "slo-opt-run"
    schema_version: Literal[1] = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the kind of object first."""
        fields = {"schema": self.schema, "schema_version": self.schema_version, **asdict(self)}
        if self.fleet is None:
            del fields["fleet"]
        plain: dict[str, Any] = msgspec.to_builtins(fields)
        return plain

    def encode(self) -> bytes:
        """One line of JSON, without its end."""
        return msgspec.json.encode(self.to_dict())


def record_of(
    run: Run,
    *,
    setting: Mapping[str, Value],
    lengths: str,
    origin: Origin,
    options: SimulationOptions,
    wall_s: float,
    fleet: FleetFacts | None = None,
) -> RunRecord:
    """The record of a run.

    Parameters
    ----------
    run : Run
        Of `play` or `play_fleet`.
    setting, lengths, options
        As given to it.
    origin : Origin
        Where the requests came from.
    wall_s : float
        Seconds it took.
    fleet : FleetFacts or None
        Of the run of a fleet.
    """
    instance, metrics = run.instance, run_metrics(run)
    return RunRecord(
        policy=run.policy,
        setting=full_setting(run.policy, setting),
        lengths=lengths,
        score_rule=instance.score_rule,
        engine=Named(instance.engine.name, engine_hash(instance.engine)),
        requests=Named(instance.name, requests_hash(instance)),
        trace=origin,
        limits={row.name: instance.slo_classes[row.name].limits() for row in metrics.classes},
        simulation=options,
        metrics=metrics,
        wall_s=round(wall_s, 3),
        versions=software_versions(),
        fleet=fleet,
    )


def software_versions() -> dict[str, str]:
    """Versions of what a result rests on, for its record."""
    from slo_opt import __version__

    found = {"slo-opt": __version__, "python": platform.python_version(), "numpy": np.__version__}
    if "numba" in sys.modules:
        found["numba"] = version("numba")
    return found


class _Head(msgspec.Struct, frozen=True):
    schema: Any = None
    schema_version: Any = None


def read_runs(path: str | Path) -> list[RunRecord]:
    """Runs from a file of JSON lines, plain or gzip.

    Raises
    ------
    TraceFormatError
        It cannot be read, or a line is no run: file and line are named.
    """
    source = load(path, "run")
    records = []
    for number, line in enumerate(source.text.splitlines(), start=1):
        if line.strip():
            try:
                records.append(_decoded(line))
            except _NoRun as error:
                raise source.error(number, str(error), _REMEDY) from None
    return records


class _NoRun(ValueError):
    """Why a line is no run."""


def _decoded(line: str) -> RunRecord:
    try:
        head = msgspec.json.decode(line, type=_Head)
        if head.schema != SCHEMA:
            raise _NoRun(f"is not a run: schema is {head.schema!r}; expected {SCHEMA!r}")
        if head.schema_version != 1:
            raise _NoRun(f"is a run in version {head.schema_version!r} of the layout; expected 1")
        record = msgspec.json.decode(line, type=RunRecord)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise _NoRun(f"{place.strip('`')}: {in_words(what)}" if place else in_words(what)) from None
    except msgspec.DecodeError as error:
        raise _NoRun(f"is not JSON ({error})") from None
    except RecursionError:
        raise _NoRun("is nested too deeply") from None
    total = record.metrics.total
    if not 0 <= total.attained <= total.offered or not 0 <= total.admitted <= total.offered:
        raise _NoRun(f"is damaged: {total.attained} attained and {total.admitted} admitted of {total.offered} offered")
    if sum(row.attained for row in record.metrics.classes) != total.attained:
        raise _NoRun("is damaged: the attained requests of its classes do not add up to their total")
    return record


def check_appendable(path: Path) -> None:
    """Refuse to add runs to a file that holds something else.

    Raises
    ------
    TraceFormatError
        It holds what is no run.
    """
    if path.is_file() and path.stat().st_size:
        read_runs(path)
