"""A fleet plan: its units run in order, and the document that they add up to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slo_opt.analysis.capacity import gpus_of
from slo_opt.analysis.fleet_bound import Results, static_bound
from slo_opt.analysis.fleet_request import Pair, Period, PlanRequest
from slo_opt.analysis.fleet_stress import AS_IS, Stress
from slo_opt.analysis.runs import software_versions
from slo_opt.domain.fingerprint import engine_hash, requests_hash
from slo_opt.domain.instance import Instance
from slo_opt.simulate.tasks import Task

SCHEMA = "slo-opt-fleet"
SCHEMA_VERSION = 1
Run = Callable[[Sequence[Task]], object]


def run_plan(request: PlanRequest, instance: Instance, results: Results, run: Run) -> None:
    """Run all units: bounds first, then the fleets of the pairs, whose search begins at the bounds.

    Parameters
    ----------
    request : PlanRequest
        What is asked.
    instance : Instance
        See `PlanRequest.instance`.
    results : mapping
        Results by the key of their task; `run` adds to it.
    run : callable
        Runs tasks that are not in it.
    """
    run(bound_tasks(request, instance))
    for stress in request.stresses:
        while tasks := _bound(request, instance, stress, results)[1]:
            run(tasks)
    run(count_tasks(request, instance, results))


def bound_tasks(request: PlanRequest, instance: Instance) -> list[Task]:
    """The bounds under every stress, period by period where there are periods."""
    return [
        request.bound_task(stress, period)
        for stress in request.stresses
        for period in request.periods(instance, stress) or (None,)
    ]


def count_tasks(request: PlanRequest, instance: Instance, results: Results) -> list[Task]:
    """The fleets to be found by simulation, those of the dearest searches first."""
    tasks = []
    for stress in request.stresses:
        bound = _bound(request, instance, stress, results)[0]
        for kind, at_least in enumerate([] if bound is None else bound["alone"]):
            if at_least:
                tasks += [request.count_task(stress, pair, kind, at_least) for pair in request.pairs]
    return tasks


def _bound(
    request: PlanRequest, instance: Instance, stress: Stress, results: Results
) -> tuple[dict[str, Any] | None, list[Task]]:
    """The bound under a stress, None while units are missing; and what would tighten it."""
    periods = request.periods(instance, stress)
    if periods:
        units = [results.get(request.bound_task(stress, period).key) for period in periods]
        return (
            static_bound(request, stress, periods, results) if all(unit is not None for unit in units) else (None, [])
        )
    unit = results.get(request.bound_task(stress).key)
    return (None if unit is None else dict(unit)), []


def plan_document(request: PlanRequest, instance: Instance, results: Results) -> dict[str, Any]:
    """The plan, as far as its units have finished.

    Parameters
    ----------
    request, instance
        See `run_plan`.
    results : mapping
        Results by the key of their task.

    Returns
    -------
    dict
        Plain JSON types; `slo_opt/report/plan.schema.json` describes them.
    """
    engines = request.engines(instance)
    rows = [_stress_row(request, instance, stress, results) for stress in request.stresses]
    versions = software_versions()
    for task in bound_tasks(request, instance):
        versions.update(results.get(task.key, {}).get("versions", {}))
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "versions": versions,
        "name": request.source.name,
        "source": request.source.describe(),
        "requests_hash": requests_hash(instance),
        "score_rule": instance.score_rule.value,
        "promise": {**request.promise.inputs(), "text": request.promise.text},
        "engines": [
            {"name": engine.name, "hash": engine_hash(engine), "price": offer.price, "gpus": gpus_of(engine)}
            for engine, offer in zip(engines, request.offers, strict=True)
        ],
        "limit": request.limit,
        "pairs": [pair.name for pair in request.pairs],
        "lengths": request.lengths,
        "all_settings": request.all_settings,
        "seed": request.seed,
        "time_limit_s": request.time_limit_s,
        "period_s": request.period_s,
        "stresses": rows,
        "over_time": _over_time(request, instance, results),
        "complete": _complete(request, instance, results),
    }


def _complete(request: PlanRequest, instance: Instance, results: Results) -> bool:
    tasks = bound_tasks(request, instance)
    if any(task.key not in results for task in tasks):
        return False
    if any(_bound(request, instance, stress, results)[1] for stress in request.stresses):
        return False
    return all(task.key in results for task in count_tasks(request, instance, results))


def _stress_row(request: PlanRequest, instance: Instance, stress: Stress, results: Results) -> dict[str, Any]:
    bound = _bound(request, instance, stress, results)[0]
    kept = ("offered", "needed", "servable", "attainable", "counts", "price", "alone")
    more = ("work_counts", "fraction", "by", "status", "solves", "unservable", "wall_s")
    row: dict[str, Any] = {**asdict(stress), "bound": None, "policies": []}
    if bound is None:
        return row
    row["bound"] = {key: bound[key] for key in kept} | {key: bound.get(key) for key in more}
    if request.period_s is not None:
        units = [results[request.bound_task(stress, p).key] for p in request.periods(instance, stress)]
        optimal = all(unit["status"] == "optimal" for unit in units)
        reasons = [unit["unservable"] for unit in units if unit["unservable"]]
        row["bound"] |= {
            "status": "optimal" if optimal else "time-limit",
            "unservable": reasons[0] if reasons else None,
            "wall_s": math.fsum(unit["wall_s"] for unit in units),
        }
    for pair in request.pairs:
        for kind, at_least in enumerate(bound["alone"]):
            unit = results.get(request.count_task(stress, pair, kind, at_least).key) if at_least else None
            if unit is not None:
                row["policies"].append(_policy_row(request, instance, pair, kind, unit, bound))
    return row


def _policy_row(
    request: PlanRequest, instance: Instance, pair: Pair, kind: int, unit: Mapping[str, Any], bound: Mapping[str, Any]
) -> dict[str, Any]:
    engine, count = request.engines(instance)[kind], unit["count"]
    price = None if count is None else count * request.prices[kind]
    kept = ("count", "setting", "offered", "admitted", "attained", "busy", "monotone", "probes", "runs", "wall_s")
    return {
        "pair": pair.name,
        "policy": pair.policy,
        "router": pair.router,
        "engine": engine.name,
        "price": price,
        "ratio": price / bound["price"] if price is not None and bound["price"] else None,
        "at_least": bound["alone"][kind],
        "attainment": None if unit["attained"] is None or not unit["offered"] else unit["attained"] / unit["offered"],
        **{key: unit[key] for key in kept},
    }


def _over_time(request: PlanRequest, instance: Instance, results: Results) -> dict[str, Any] | None:
    """The fleet that follows the load, period by period, and the one that never changes."""
    periods = request.periods(instance, AS_IS)
    units = [results.get(request.bound_task(AS_IS, period).key) for period in periods]
    if not periods or any(unit is None for unit in units):
        return None
    assert request.period_s is not None
    hours = request.period_s / 3600
    gpus = [gpus_of(engine) for engine in request.engines(instance)]
    rows = [_period_row(period, unit, hours, gpus) for period, unit in zip(periods, units, strict=True) if unit]
    span = _num_periods(request, periods) * hours
    reached = all(row["counts"] is not None for row in rows)
    static = _bound(request, instance, AS_IS, results)[0]
    counts = None if static is None else static["counts"]
    peak = max(rows, key=lambda row: math.inf if row["price"] is None else row["price"])
    return {
        "hours": span,
        "periods": rows,
        "peak": {key: peak[key] for key in ("start_h", "counts", "price", "gpus")},
        "mean_price": math.fsum(row["price"] for row in rows) * hours / span if reached else None,
        "gpu_hours": math.fsum(row["gpus"] for row in rows) * hours if reached else None,
        "cost": math.fsum(row["price"] for row in rows) * hours if reached else None,
        "static_gpu_hours": None if counts is None else _gpus(counts, gpus) * span,
        "static_cost": None if static is None or static["price"] is None else static["price"] * span,
    }


def _num_periods(request: PlanRequest, periods: Sequence[Period]) -> int:
    """All of them, those without a request included."""
    assert request.period_s is not None
    last = periods[-1].number + 1
    return last if request.source.day is None else max(last, math.ceil(86_400 / request.period_s - 1e-9))


def _period_row(period: Period, unit: Mapping[str, Any], hours: float, gpus: Sequence[int]) -> dict[str, Any]:
    counts = unit["counts"]
    kept = ("offered", "needed", "servable", "price", "status", "by", "wall_s")
    return {
        "number": period.number,
        "start_h": period.number * hours,
        "counts": counts,
        "gpus": None if counts is None else _gpus(counts, gpus),
        **{key: unit[key] for key in kept},
    }


def _gpus(counts: Sequence[int], gpus: Sequence[int]) -> int:
    return sum(count * each for count, each in zip(counts, gpus, strict=True))
