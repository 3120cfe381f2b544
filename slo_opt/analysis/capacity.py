"""Capacities of policies over scenarios, engines and seeds: the units of the sweep, and the table made of them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from slo_opt.analysis.confidence import mean_and_interval
from slo_opt.analysis.runs import software_versions
from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.domain.slo import ScoreRule
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import policy_entry
from slo_opt.simulate.capacity import CapacityOptions, find_capacity
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.tasks import Task
from slo_opt.simulate.verdict import needed
from slo_opt.simulate.workload import Workload
from slo_opt.traces.engine_file import engine_from
from slo_opt.traces.nearest import did_you_mean

SCHEMA = "slo-opt-capacity"
SCHEMA_VERSION = 1
BASELINES = ("vllm-fcfs", "vllm-priority", "sarathi")  # what a ratio refers to: the best of these in the table
_PARALLEL = re.compile(r"-tp(\d+)(?:-|$)")
_UNIT = "slo_opt.analysis.capacity:capacity_unit"


@dataclass(frozen=True, slots=True)
class CapacityRequest:
    """What is asked of a capacity table.

    Parameters
    ----------
    scenarios, engines, policies : tuple of str
        Names; every combination is a cell.
    seeds : int
        Seeds 0 to seeds - 1.
    duration_s, data_dir, score_rule
        See `Workload`.
    options : CapacityOptions
        See `find_capacity`.

    Raises
    ------
    InvalidInputError
        An unknown name, no seed, or a value out of range.
    """

    scenarios: tuple[str, ...]
    engines: tuple[str, ...]
    policies: tuple[str, ...]
    seeds: int = 1
    duration_s: float = 300.0
    data_dir: Path | None = None
    score_rule: ScoreRule = ScoreRule.DSLO
    options: CapacityOptions = field(default_factory=CapacityOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InvalidInputError(f"seeds is {self.seeds}; expected at least 1")
        if not 0 < self.options.tolerance <= 1:
            raise InvalidInputError(f"tolerance is {self.options.tolerance}; expected a relative width in (0, 1]")
        needed(1, self.options.target)
        if self.options.lengths not in LENGTHS:
            hint = did_you_mean(self.options.lengths, LENGTHS)
            raise InvalidInputError(
                f"unknown length knowledge {self.options.lengths!r}. {hint}Known: {', '.join(LENGTHS)}"
            )
        for names, what in ((self.scenarios, "scenario"), (self.engines, "engine"), (self.policies, "policy")):
            if not names:
                raise InvalidInputError(f"no {what} is named; name at least one")
        for policy in self.policies:
            policy_entry(policy)
        for scenario in self.scenarios:
            for engine in self.engines:
                self.workload(scenario, engine, 0)

    def workload(self, scenario: str, engine: str, seed: int) -> Workload:
        """The workload of a cell and a seed; its rate is the search's."""
        return Workload(scenario, engine_from(engine), 1.0, self.duration_s, seed, self.data_dir, self.score_rule)

    def task(self, scenario: str, engine: str, policy: str, seed: int) -> Task:
        """One unit: a policy's capacity for one seed."""
        workload = self.workload(scenario, engine, seed)
        inputs = {
            "scenario": scenario,
            "engine": engine,
            "engine_hash": engine_hash(workload.engine),
            "policy": policy,
            "seed": seed,
            "duration_s": self.duration_s,
            "data": workload.digest,
            "score_rule": self.score_rule.value,
            "options": asdict(self.options),
        }
        where = {"data_dir": None if self.data_dir is None else str(self.data_dir)}
        return Task(_UNIT, inputs, f"{scenario}, {engine}, {policy}, seed {seed}", where)

    def tasks(self) -> list[Task]:
        """All units; those of a cell one after another."""
        return [
            self.task(scenario, engine, policy, seed)
            for scenario in self.scenarios
            for engine in self.engines
            for policy in self.policies
            for seed in range(self.seeds)
        ]


def capacity_unit(inputs: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    """The work of a task of `CapacityRequest.task`; a plain JSON object."""
    workload = Workload(
        inputs["scenario"],
        engine_from(inputs["engine"]),
        1.0,
        inputs["duration_s"],
        inputs["seed"],
        None if data_dir is None else Path(data_dir),
        ScoreRule(inputs["score_rule"]),
    )
    given = dict(inputs["options"])
    options = CapacityOptions(**{**given, "simulation": SimulationOptions(**given["simulation"])})
    found = find_capacity(workload, inputs["policy"], options)
    return {**asdict(found), "setting": dict(found.setting), "probes": list(found.probes), "source": workload.source}


def gpus_of(engine: EngineModel | str) -> int:
    """GPUs of a replica, by the ``tp`` of its name."""
    found = _PARALLEL.search(engine if isinstance(engine, str) else engine.name)
    return int(found[1]) if found else 1


def capacity_document(request: CapacityRequest, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table, as far as its units have finished.

    Parameters
    ----------
    request : CapacityRequest
        What was asked.
    results : mapping
        Results by the key of their task.

    Returns
    -------
    dict
        Plain JSON types. Per cell a row a policy: requests a second a GPU, mean over seeds with its 95 % t interval,
        rates and best settings of the seeds, and the ratio to the best baseline in the cell.
    """
    cells = []
    for scenario in request.scenarios:
        for engine in request.engines:
            rows, source = [], None
            for policy in request.policies:
                units = [results.get(request.task(scenario, engine, policy, s).key) for s in range(request.seeds)]
                done = [unit for unit in units if unit is not None]
                if done:
                    source = done[0]["source"]
                    rows.append(_row(policy, done, gpus_of(engine)))
            if rows:
                cells.append(_cell(scenario, engine, source, rows))
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "versions": software_versions(),
        "target": request.options.target,
        "tolerance": request.options.tolerance,
        "lengths": request.options.lengths,
        "score_rule": request.score_rule.value,
        "seeds": request.seeds,
        "duration_s": request.duration_s,
        "simulation": asdict(replace(request.options.simulation, seed=0)),
        "baselines": [name for name in BASELINES if name in request.policies],
        "complete": all(task.key in results for task in request.tasks()),
        "cells": cells,
        "geometric_means": _geometric_means(request.policies, cells),
    }


def _row(policy: str, units: Sequence[Mapping[str, Any]], gpus: int) -> dict[str, Any]:
    rates = [unit["rate"] / gpus for unit in units]
    mean, interval = mean_and_interval(rates)
    settings = [unit["setting"] for unit in units]
    return {
        "policy": policy,
        "rate_per_gpu": mean,
        "ci95": None if interval is None else list(interval),
        "rates_per_gpu": rates,
        "setting": max(settings, key=settings.count),
        "settings": settings,
        "settings_tried": units[0]["settings_tried"],
        "attainment": [
            None if unit["verdict"] is None else unit["verdict"]["attained"] / unit["verdict"]["offered"]
            for unit in units
        ],
        "monotone": all(unit["monotone"] for unit in units),
        "wall_s": math.fsum(unit["wall_s"] for unit in units),
    }


def _cell(scenario: str, engine: str, source: str | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    baselines = [row for row in rows if row["policy"] in BASELINES and row["rate_per_gpu"] > 0]
    best = max(baselines, key=lambda row: row["rate_per_gpu"], default=None)
    for row in rows:
        row["ratio"] = None if best is None else row["rate_per_gpu"] / best["rate_per_gpu"]
    return {
        "scenario": scenario,
        "engine": engine,
        "engine_hash": engine_hash(engine_from(engine)),
        "gpus": gpus_of(engine),
        "source": source,
        "baseline": None if best is None else best["policy"],
        "rows": rows,
    }


def _geometric_means(policies: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the ratios, over the cells that have one; a policy of capacity 0 somewhere has none."""
    means = []
    for policy in policies:
        ratios = [row["ratio"] for cell in cells for row in cell["rows"] if row["policy"] == policy]
        ratios = [ratio for ratio in ratios if ratio is not None]
        positive = bool(ratios) and min(ratios) > 0
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if positive else None
        means.append({"policy": policy, "ratio": mean, "cells": len(ratios)})
    return means
