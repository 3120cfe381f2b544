"""The proved side of a fleet plan: the fleet that the traffic needs at least, as a whole or period by period."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slo_opt.analysis.fleet_promise import Promise
from slo_opt.analysis.fleet_request import Period, PlanRequest
from slo_opt.analysis.fleet_source import fleet_instance
from slo_opt.analysis.fleet_stress import Stress, on_engine, slower, stressed
from slo_opt.domain.engine import EngineModel
from slo_opt.domain.fingerprint import engine_hash, requests_hash
from slo_opt.domain.instance import Instance
from slo_opt.formulations.fleet_cuts import (
    TOLERANCE,
    FleetCut,
    FleetPart,
    attained_most,
    cheapest_fleet,
    least_count,
)
from slo_opt.formulations.fleet_highs import FleetTarget
from slo_opt.simulate.tasks import Task
from slo_opt.simulate.verdict import needed
from slo_opt.solvers.fleet import FleetBound, fleet_cut, least_fleet
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.traces.engine_file import engine_from

_NEAR_PEAK = 0.75  # periods whose own fleet is so near to that of the day: only there may a tighter cut change it
Results = Mapping[str, Mapping[str, Any]]


def stressed_instance(inputs: Mapping[str, Any], place: str | None, curve: str | None) -> Instance:
    """The traffic of a unit, on the first engine type as it is."""
    return stressed(fleet_instance(inputs["instance"], place, curve), Stress(**inputs["stress"]))


def engines_of(inputs: Mapping[str, Any], instance: Instance) -> tuple[EngineModel, ...]:
    """The engine types of a unit, as they are."""
    return tuple(instance.engine if e["name"] is None else engine_from(e["name"]) for e in inputs["engines"])


def _on_each(inputs: Mapping[str, Any], instance: Instance) -> tuple[Instance, ...]:
    """The traffic on each engine type under the stress of the unit."""
    factor = Stress(**inputs["stress"]).batch_times
    return tuple(on_engine(instance, slower(engine, factor)) for engine in engines_of(inputs, instance))


def _within(instance: Instance, period: Mapping[str, Any] | None) -> Instance:
    """The requests that arrive in a period."""
    if period is None:
        return instance
    kept = (r for r in instance.requests if period["start_s"] <= r.arrival_s < period["end_s"])
    return instance.with_requests(tuple(kept))


def bound_unit(inputs: Mapping[str, Any], place: str | None, curve: str | None) -> dict[str, Any]:
    """The work of a task of `PlanRequest.bound_task`; a plain JSON object.

    Where the requests that some engine type can attain are too few for the promise, `attainable` is false and there is
    no bound: no fleet reaches it.
    """
    instance = _within(stressed_instance(inputs, place, curve), inputs["period"])
    about = {
        "requests_hash": requests_hash(instance),
        "score_rule": instance.score_rule.value,
        "engines": [{"name": engine.name, "hash": engine_hash(engine)} for engine in engines_of(inputs, instance)],
        "span_s": instance.requests[-1].arrival_s - instance.requests[0].arrival_s,
    }
    counted = sum(instance.value_of(request) > 0 for request in instance.requests)
    if not counted:  # best effort alone asks for no fleet
        return {"about": about, "offered": 0, "needed": 0, "servable": 0, "attainable": True, **_nothing(inputs)}
    targets = Promise.of(inputs["promise"]).targets(instance)
    instances = _on_each(inputs, instance)
    servable = _servable(instances)
    found: dict[str, Any] = {
        "about": about,
        "offered": sum(len(target.requests) for target in targets),
        "needed": sum(target.needed for target in targets),
        "servable": sum(len(servable.intersection(target.requests)) for target in targets),
        "attainable": all(len(servable.intersection(target.requests)) >= target.needed for target in targets),
    }
    if not found["attainable"]:
        nobody = {"counts": None, "price": None, "alone": [None] * len(instances)}
        return {**found, **_nothing(inputs), **nobody, "unservable": _reason(instances, targets)}
    limits = [inputs["limit"]] * len(instances)
    bound = least_fleet(instances, targets, inputs["prices"], limits, SolverConfig(time_limit_s=inputs["time_limit_s"]))
    if bound.termination is Termination.INTERRUPTED:
        raise KeyboardInterrupt
    return {
        **found,
        "counts": None if bound.counts is None else list(bound.counts),
        "price": bound.price,
        "alone": _alone(bound, found["needed"], inputs["limit"], len(instances)),
        "work_counts": None if bound.work_counts is None else list(bound.work_counts),
        "fraction": bound.fraction,
        "by": bound.by,
        "status": bound.termination.value,
        "solves": bound.solves,
        "cuts": [{"constant": cut.constant, "per_replica": list(cut.per_replica)} for cut in bound.part.cuts],
        "unservable": None,
        "wall_s": bound.wall_s,
        "versions": bound.versions,
    }


def _alone(bound: FleetBound, total: int, limit: int, kinds: int) -> list[int | None]:
    if kinds == 1:  # integrality may have excluded more than the cuts
        return [None if bound.counts is None else bound.counts[0]]
    return alone_counts([bound.part], total, limit, kinds)


def _nothing(inputs: Mapping[str, Any]) -> dict[str, Any]:
    none = [0] * len(inputs["engines"])
    return {
        "counts": none,
        "price": 0.0,
        "alone": none,
        "work_counts": none,
        "fraction": None,
        "by": "work",
        "status": Termination.OPTIMAL.value,
        "solves": 0,
        "cuts": [],
        "unservable": None,
        "wall_s": 0.0,
        "versions": {},
    }


def _servable(instances: Sequence[Instance]) -> frozenset[int]:
    """Requests that an idle replica of some type could attain."""
    return frozenset(
        index
        for index in range(len(instances[0].requests))
        if any(instance.unservable_reason(instance.requests[index]) is None for instance in instances)
    )


def _reason(instances: Sequence[Instance], targets: Sequence[FleetTarget]) -> str | None:
    """Why the first request that was promised cannot be attained by the first engine type."""
    instance = instances[0]
    for target in targets:
        for index in target.requests:
            reason = instance.unservable_reason(instance.requests[index])
            if reason is not None:
                return f"request {instance.requests[index].id!r} on {instance.engine.name}: {reason}"
    return None


def cut_unit(inputs: Mapping[str, Any], place: str | None, curve: str | None) -> dict[str, Any]:
    """The work of a task of `PlanRequest.cut_task`; a plain JSON object."""
    instance = _within(stressed_instance(inputs, place, curve), inputs["period"])
    (target,) = Promise.of(inputs["promise"]).targets(instance)
    config = SolverConfig(time_limit_s=inputs["time_limit_s"])
    cut = fleet_cut(_on_each(inputs, instance), target, inputs["counts"], config)
    if cut is None:
        return {"cut": None}
    return {"cut": {"constant": cut.constant, "per_replica": list(cut.per_replica)}}


def static_bound(
    request: PlanRequest, stress: Stress, periods: Sequence[Period], results: Results
) -> tuple[dict[str, Any], list[Task]]:
    """The fleet that never changes and attains the promise over all periods together, as far as units have finished.

    What it attains is at most the sum over the periods of what it attains of each, all of it being there. Where a
    period's own fleet is near that of the day, the relaxation is solved again at the fleet in question.

    Parameters
    ----------
    request, stress, periods
        What is asked.
    results : mapping
        Results of finished tasks by key, those of all periods among them.

    Returns
    -------
    dict
        As of `bound_unit`, less what only one solve has. It is proved whether or not anything is left to do.
    list of Task
        What would tighten it.
    """
    units = [results[request.bound_task(stress, period).key] for period in periods]
    cuts = [[_cut(cut) for cut in unit["cuts"]] for unit in units]
    assert request.promise.overall is not None
    offered, servable = (sum(unit[key] for unit in units) for key in ("offered", "servable"))
    total = needed(offered, request.promise.overall)
    tried: set[tuple[int, ...]] = set()
    while True:
        parts = [FleetPart(float(unit["servable"]), tuple(own)) for unit, own in zip(units, cuts, strict=True)]
        limits = [request.limit] * len(request.offers)
        counts = cheapest_fleet(parts, total, request.prices, limits) if servable >= total else None
        price = None if counts is None else math.fsum(p * n for p, n in zip(request.prices, counts, strict=True))
        found = {
            "offered": offered,
            "needed": total,
            "servable": servable,
            "attainable": servable >= total,
            "counts": None if counts is None else list(counts),
            "price": price,
            "alone": alone_counts(parts, total, request.limit, len(limits)),
        }
        if counts is None or counts in tried:
            return found, []
        tried.add(counts)
        near = [
            (number, request.cut_task(stress, period, counts))
            for number, (period, unit) in enumerate(zip(periods, units, strict=True))
            if unit["servable"] and (unit["price"] is None or unit["price"] >= _NEAR_PEAK * (price or 0.0))
        ]
        missing = [task for _, task in near if task.key not in results]
        if missing:
            return found, missing
        for number, task in near:
            cut = results[task.key]["cut"]
            cuts[number] += [] if cut is None else [_cut(cut)]


def alone_counts(parts: Sequence[FleetPart], total: int, limit: int, kinds: int) -> list[int | None]:
    """For each engine type the least count that is not excluded if there is no other type; None if all are."""

    def least(kind: int) -> int | None:
        def enough(count: int) -> bool:
            return attained_most(parts, [count * (kind == other) for other in range(kinds)]) >= total - TOLERANCE

        return least_count(enough, limit)

    return [least(kind) for kind in range(kinds)]


def _cut(fields: Mapping[str, Any]) -> FleetCut:
    return FleetCut(fields["constant"], tuple(fields["per_replica"]))
