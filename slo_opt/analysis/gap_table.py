"""The gap table: what each policy attained at each load, over the bound, in all and by SLO class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slo_opt.analysis.gap import GapRequest
from slo_opt.analysis.runs import software_versions
from slo_opt.analysis.solve import UnsoundBoundError
from slo_opt.domain.errors import InvalidInputError

SCHEMA = "slo-opt-gap"
SCHEMA_VERSION = 1
_TOLERANCE = 1e-6  # of a bound, for floating point in the solver


def gap_document(request: GapRequest, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table, as far as its units have finished.

    Parameters
    ----------
    request : GapRequest
        What was asked.
    results : mapping
        Results by the key of their task.

    Returns
    -------
    dict
        Plain JSON types.

    Raises
    ------
    UnsoundBoundError
        A run is worth more than the bound: a model is wrong, no figure can be trusted.
    """
    rows = [_load_row(request, load, results) for load in request.loads]
    tasks = request.tasks() + request.class_tasks(results)
    slower = request.simulation.slowdown
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "versions": software_versions(),
        "name": request.source.name,
        "instance": request.source.describe(),
        "gaps": {
            "information": "shown: online policies against a bound on every schedule, clairvoyant ones included; what "
            "the bound is too high by is part of it",
            "model": "none: the bound holds for every plan, not only for those of the admission model",
            "execution": "none: every batch takes what the engine model says"
            if slower == 1 and not request.simulation.noise
            else "part of what is shown: batches take other times than the engine model says",
        },
        "no_bound": request.no_bound,
        "lengths": request.lengths,
        "all_settings": request.all_settings,
        "simulation": asdict(request.simulation),
        "time_limit_s": request.time_limit_s,
        "policies": list(request.policies),
        "loads": [row for row in rows if row["policies"] or row["bound"] is not None],
        "complete": all(task.key in results for task in tasks),
    }


def _load_row(request: GapRequest, load: float, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    bound = None if request.no_bound else results.get(request.bound_task(load).key)
    limits = {} if bound is None else _class_limits(request, load, bound, results)
    rows = []
    units = [] if bound is None else [bound]
    for policy in request.policies:
        run = results.get(request.run_task(load, policy).key)
        if run is not None:
            units.append(run)
            rows.append(_policy_row(request, load, policy, run, bound, limits))
    first = rows[0] if rows else bound
    about = next(
        (unit["about"] for unit in units), dict.fromkeys(("engine", "engine_hash", "requests_hash", "score_rule"))
    )
    if any(unit["about"] != about for unit in units):
        raise InvalidInputError(f"{request.source.name}, load {load:g}: bound and runs are about different requests")
    return {
        "load": load,
        **about,
        "rate": request.source.inputs(load).get("rate"),
        "offered": None if first is None else first["offered"],
        "offered_value": None if first is None else first["offered_value"],
        "bound": None if bound is None else bound["bound"],
        "bound_by": None if bound is None else bound["bound_by"],
        "bound_status": None if bound is None else bound["status"],
        "bound_wall_s": None if bound is None else bound["wall_s"],
        "class_bounds": limits,
        "policies": rows,
    }


def _class_limits(
    request: GapRequest, load: float, bound: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Bounds of the classes: each one's own where it was solved, else what an idle engine could attain of it."""
    limits = {}
    for name, servable in bound["classes"].items():
        own = results.get(request.bound_task(load, name).key) if request.class_bounds else None
        limits[name] = min(bound["bound"], servable, math.inf if own is None else own["bound"])
    return limits


def _policy_row(
    request: GapRequest,
    load: float,
    policy: str,
    run: Mapping[str, Any],
    bound: Mapping[str, Any] | None,
    limits: Mapping[str, float],
) -> dict[str, Any]:
    classes = []
    for name, figures in run["classes"].items():
        limit = limits.get(name)
        where = f"class {name!r} at load {load:g}"
        classes.append(
            {"name": name, **figures, "bound": limit, "of_bound": _share(request, where, policy, figures, limit)}
        )
    limit = None if bound is None else bound["bound"]
    kept = ("setting", "offered", "offered_value", "admitted", "attained", "value", "drained")
    return {
        "policy": policy,
        **{key: run[key] for key in kept},
        "of_offered": run["value"] / run["offered_value"] if run["offered_value"] else None,
        "of_bound": _share(request, f"load {load:g}", policy, run, limit),
        "classes": classes,
    }


def _share(request: GapRequest, where: str, policy: str, run: Mapping[str, Any], limit: float | None) -> float | None:
    """Value over bound; None without a bound or where it is 0."""
    if limit is None:
        return None
    worth: Sequence[float] = [run["value"], *run.get("values", [])]
    if max(worth) > limit + _TOLERANCE * max(1.0, limit):
        raise UnsoundBoundError(
            f"{request.source.name}, {where}: a run of {policy!r} of value {max(worth):g} passed the checker, but the "
            f"bound claims that none exceeds {limit:g}: that model is wrong. Please report it with the trace, the "
            "engine and the seed"
        )
    return float(run["value"]) / limit if limit > 0 else None
