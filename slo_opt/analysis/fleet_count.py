"""The simulated side of a fleet plan: the least fleet with which a scheduler and a router keep the promise."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slo_opt.analysis.fleet_bound import engines_of, stressed_instance
from slo_opt.analysis.fleet_promise import Promise, max_lost
from slo_opt.analysis.fleet_search import least_passing
from slo_opt.analysis.fleet_stress import Stress
from slo_opt.analysis.solve import UnsoundBoundError
from slo_opt.domain.engine import EngineModel
from slo_opt.domain.fingerprint import requests_hash
from slo_opt.domain.instance import Instance
from slo_opt.formulations.fleet_highs import FleetTarget
from slo_opt.policies.catalogue import Setting
from slo_opt.policies.lengths import make_lengths
from slo_opt.policies.registry import policy_entry, prepare
from slo_opt.routing.registry import RoutingContext, make_router, prepare_routers, router_entry
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_run import FleetRun
from slo_opt.simulate.fleet_spec import FleetOptions, replica_spec
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.verdict import confirmed


@dataclass(frozen=True, slots=True)
class Crew:
    """Who runs a fleet.

    Parameters
    ----------
    policy, router : str
        Names.
    policy_setting, router_setting : mapping
        Static settings.
    lengths : str
        What both know of output lengths.
    """

    policy: str
    router: str
    policy_setting: Setting
    router_setting: Setting
    lengths: str = "quantile"


def run_fleet(instance: Instance, engine: EngineModel, count: int, crew: Crew, options: SimulationOptions) -> FleetRun:
    """Serve an instance with equal replicas.

    Parameters
    ----------
    instance : Instance
        Requests and promises; its engine sets relative TTFT limits.
    engine : EngineModel
        What the replicas run.
    count : int
        How many.
    crew : Crew
        Scheduler and router; both fresh.
    options : SimulationOptions
        Of every replica.
    """
    spec = replica_spec(instance, crew.policy, crew.policy_setting, crew.lengths, engine=engine)
    context = RoutingContext(instance.slo_classes, make_lengths(crew.lengths, instance))
    router = make_router(crew.router, context, crew.router_setting)
    return simulate_fleet(instance, [spec] * count, router, FleetOptions(simulation=options))


def keeps(run: FleetRun, targets: tuple[FleetTarget, ...]) -> bool:
    """Whether enough requests of each target are attained, as the simulator counted."""
    if run.cut:
        return False
    return all(int(np.count_nonzero(run.on_time[list(target.requests)])) >= target.needed for target in targets)


def count_unit(inputs: Mapping[str, Any], place: str | None, curve: str | None) -> dict[str, Any]:
    """The work of a task of `PlanRequest.count_task`; a plain JSON object.

    Default settings are searched first. Each other one is tried with one replica less than the best so far, and goes on
    downwards from there only while that passes. The run of the result is replayed by the checker.

    Raises
    ------
    UnsoundBoundError
        Fewer replicas than are proved to be needed keep the promise: a model is wrong.
    """
    began_s = time.perf_counter()
    instance = stressed_instance(inputs, place, curve)
    engine = engines_of(inputs, instance)[inputs["kind"]]
    targets = Promise.of(inputs["promise"]).targets(instance)
    stress, at_least = Stress(**inputs["stress"]), max(1, inputs["at_least"])
    options = SimulationOptions(seed=inputs["seed"], slowdown=stress.batch_times, max_lost=max_lost(instance, targets))
    pair = inputs["pair"]
    prepare([pair["policy"]])
    prepare_routers([pair["router"]])
    crews = [
        Crew(pair["policy"], pair["router"], policy_setting, router_setting, inputs["lengths"])
        for router_setting in router_entry(pair["router"]).settings
        for policy_setting in policy_entry(pair["policy"]).settings
    ]
    passed: dict[int, FleetRun] = {}
    num_runs = 0

    def passes(crew: Crew, count: int) -> bool:
        nonlocal num_runs
        num_runs += 1
        run = run_fleet(instance, engine, count, crew, options)
        good = keeps(run, targets)
        if good:
            passed[count] = run
            for larger in [known for known in passed if known > count]:
                del passed[larger]
        if good and count < inputs["at_least"]:
            confirmed(run)
            raise UnsoundBoundError(
                f"{instance.name}: {count} replicas of {engine.name} under {pair['policy']}+{pair['router']} keep the "
                f"promise, but {inputs['at_least']} are proved to be needed: that model is wrong. Please report it "
                "with the trace, the engine and the seed"
            )
        return good

    best, search = crews[0], least_passing(lambda count: passes(crews[0], count), at_least, inputs["limit"])
    count = search.count
    for crew in crews[1:] if inputs["all_settings"] else []:
        while count is None or count > at_least:
            fewer = inputs["limit"] if count is None else count - 1
            if not passes(crew, fewer):
                break
            best, count = crew, fewer
    return {
        "count": count,
        "setting": {"policy": dict(best.policy_setting), "router": dict(best.router_setting)},
        **_outcome(None if count is None else passed[count], targets),
        "monotone": search.monotone,
        "probes": [list(probe) for probe in search.probes],
        "runs": num_runs,
        "requests_hash": requests_hash(instance),
        "wall_s": time.perf_counter() - began_s,
    }


def _outcome(run: FleetRun | None, targets: tuple[FleetTarget, ...]) -> dict[str, Any]:
    """What the run of the result attained, and how busy it was."""
    if run is None:
        return {"offered": sum(len(t.requests) for t in targets), "admitted": None, "attained": None, "busy": None}
    confirmed(run)
    members = sorted({index for target in targets for index in target.requests})
    admitted = set(run.schedule.admitted)
    return {
        "offered": len(members),
        "admitted": sum(index in admitted for index in members),
        "attained": int(np.count_nonzero(run.on_time[members])),
        "busy": run.evaluation.busy_s / run.replica_s if run.replica_s > 0 else 0.0,
    }
