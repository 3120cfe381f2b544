"""One cell of a fleet benchmark: the capacity of a router, a policy and a number of replicas on one workload."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from slo_opt.analysis.solve import sharpened
from slo_opt.domain.engine import EngineModel
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.simulate.bracket import highest_passing
from slo_opt.simulate.capacity import CapacityOptions
from slo_opt.simulate.fleet_capacity import designs_of, find_fleet_capacity
from slo_opt.simulate.tasks import Task
from slo_opt.simulate.verdict import needed
from slo_opt.simulate.workload import Workload
from slo_opt.solvers.fluid import FluidHighsSolver
from slo_opt.solvers.interface import SolverConfig
from slo_opt.traces.engine_file import engine_from
from slo_opt.traces.generate import generate
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.scenarios import SCENARIOS, Scenario, apply_scenario
from slo_opt.traces.trace import Trace
from slo_opt.traces.transforms import scale

_COARSER = (2.0, 1.0)  # how long the slots of the relaxations are that bound a rate, the quickest first
INVERSION = "mix-inversion"  # in the middle third of the requests, as many have a TPOT of 20 ms as had one of 100


@dataclass(frozen=True, slots=True)
class PolyServeWorkload(Workload):
    """PolyServe's mix of SLOs under Poisson arrivals: at a lower rate the first of the requests of a higher one.

    Parameters
    ----------
    inverted : bool
        Whether the shares of the TPOTs are turned round for the middle third.
    """

    inverted: bool = False

    def trace(self) -> Trace:
        """The requests at the rate."""
        count = max(3, round(self.rate * self.duration_s))
        size = 4 ** math.ceil(math.log(count, 4))
        straight = _drawn(self.engine, size, self.seed, turned=False)
        requests = list(straight.requests[:count])
        if self.inverted:
            middle = slice(count // 3, 2 * count // 3)
            requests[middle] = _drawn(self.engine, size, self.seed, turned=True).requests[middle]
        drawn_rate = count / straight.requests[count].arrival_s
        name = INVERSION if self.inverted else "poisson"
        return replace(straight, name=name, requests=scale(requests, self.rate / drawn_rate))


@lru_cache(maxsize=4)
def _drawn(engine: EngineModel, size: int, seed: int, turned: bool) -> Trace:
    """More than so many requests; `turned`: the same ones with the shares of their TPOTs turned round."""
    trace = generate("polyserve", rate=2.0 * size, duration_s=1.0, seed=seed, engine=engine, arrivals="poisson")
    if not turned:
        return trace
    stages = [request.stages[0] for request in trace.requests]
    rows = [
        Row(request.id, request.arrival_s, stage.prompt_tokens, stage.output_tokens, line=line)
        for line, (request, stage) in enumerate(zip(trace.requests, stages, strict=True))
    ]
    return apply_scenario(RawTrace("polyserve", INVERSION, tuple(rows), {}), _turned_round(), engine, seed)


def _turned_round() -> Scenario:
    """PolyServe's scenario with the shares of its TPOTs in reverse."""
    scenario = SCENARIOS["polyserve"]
    tpots = sorted({slo.tpot_ms for slo in scenario.classes})
    shares = {
        tpot: sum(scenario.parts[slo.name].share for slo in scenario.classes if slo.tpot_ms == tpot) for tpot in tpots
    }
    reverse = dict(zip(tpots, reversed([shares[tpot] for tpot in tpots]), strict=True))
    parts = {
        slo.name: replace(
            scenario.parts[slo.name], share=scenario.parts[slo.name].share * reverse[slo.tpot_ms] / shares[slo.tpot_ms]
        )
        for slo in scenario.classes
    }
    return replace(scenario, parts=parts)


def workload_of(inputs: Mapping[str, Any], data_dir: str | None) -> Workload:
    """The workload that a cell names."""
    engine = engine_from(inputs["engine"])
    if inputs["workload"] in ("poisson", INVERSION):
        inverted = inputs["workload"] == INVERSION
        return PolyServeWorkload("polyserve", engine, 1.0, inputs["duration_s"], inputs["seed"], inverted=inverted)
    folder = None if data_dir is None else Path(data_dir)
    return Workload(inputs["workload"], engine, 1.0, inputs["duration_s"], inputs["seed"], folder)


def cell(
    workload: str,
    engine: str,
    router: str,
    policy: str,
    num_replicas: int,
    *,
    splits: Sequence[tuple[int, int]] = (),
    router_setting: Mapping[str, Any] | None = None,
    duration_s: float = 300.0,
    seed: int = 0,
    data_dir: Path | None = None,
) -> Task:
    """The task of one cell."""
    inputs: dict[str, Any] = {
        "workload": workload,
        "engine": engine,
        "engine_hash": engine_hash(engine_from(engine)),
        "router": router,
        "router_setting": router_setting,
        "policy": policy,
        "num_replicas": num_replicas,
        "splits": [list(split) for split in splits],
        "duration_s": duration_s,
        "seed": seed,
    }
    where = {"data_dir": None if data_dir is None else str(data_dir)}
    inputs["data"] = workload_of(inputs, where["data_dir"]).digest
    label = f"{workload}, {num_replicas} x {engine}, {router} + {policy}{' apart' if splits else ''}"
    return Task("fleet_cells:cell_unit", inputs, label, where)


def cell_unit(inputs: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    """The work of a cell; a plain JSON object."""
    designs = designs_of(
        inputs["router"], inputs["policy"], inputs["num_replicas"], [tuple(split) for split in inputs["splits"]]
    )
    if inputs["router_setting"] is not None:
        first = designs[0]
        designs = tuple(
            replace(design, router_setting=inputs["router_setting"])
            for design in designs
            if design.router_setting == first.router_setting
        )
    found = find_fleet_capacity(workload_of(inputs, data_dir), designs, CapacityOptions())
    verdict = found.verdict
    return {
        "rate": found.rate,
        "fails_at": found.fails_at,
        "monotone": found.monotone,
        "setting": dict(found.setting),
        "settings_tried": found.settings_tried,
        "offered": None if verdict is None else verdict.offered,
        "attained": None if verdict is None else verdict.attained,
        "probes": list(found.probes),
    }


def bound_cell(
    workload: str, engine: str, num_replicas: int, *, duration_s: float, seed: int, limit_s: float, start: float
) -> Task:
    """The task that proves how much any scheduler can sustain; the search begins at a rate of `start`."""
    inputs = {
        "workload": workload,
        "engine": engine,
        "engine_hash": engine_hash(engine_from(engine)),
        "num_replicas": num_replicas,
        "duration_s": duration_s,
        "seed": seed,
        "limit_s": limit_s,
        "start": start,
    }
    return Task("fleet_cells:bound_unit", inputs, f"{workload}, {num_replicas} x {engine}, bound")


def bound_unit(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Lowest rate found at which a proved bound says that nobody attains 90 %; rates 3 % apart at the end."""
    workload = workload_of(inputs, None)
    probes: list[dict[str, Any]] = []

    def possible(rate: float) -> bool:
        instance = replace(replace(workload, rate=rate).instance(), num_replicas=inputs["num_replicas"])
        offered = sum(instance.value_of(request) > 0 for request in instance.requests)
        config = SolverConfig(time_limit_s=inputs["limit_s"])
        for coarser in _COARSER:  # what the quickest relaxation excludes, no finer one need look at
            result = FluidHighsSolver(coarser).solve(instance, config)
            dual = result.bounds.dual
            bound = None if dual is None else sharpened(dual, instance)
            probe = {"rate": rate, "bound": bound, "offered": offered, "coarser": coarser}
            probes.append({**probe, "wall_s": result.stats.wall_s})
            if bound is not None and bound < needed(offered, 0.9):
                return False
        return True

    found = highest_passing(possible, inputs["start"], floor=inputs["start"] / 4, ceiling=inputs["start"] * 4, step=1.2)
    return {"rate": found.fails_at, "probes": probes}
