"""The result of a solve as one JSON object."""

import platform
from dataclasses import asdict
from typing import Any

import numpy as np

from slo_opt.analysis.origin import Origin
from slo_opt.analysis.solve import SolveReport, gap_of
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.solvers.interface import SolverConfig

SCHEMA = "slo-opt-solve"
SCHEMA_VERSION = 1


def share(part: float, whole: float) -> float | None:
    """``part / whole``; None where there is no whole."""
    return part / whole if whole else None


def solve_document(report: SolveReport, source: Origin, config: SolverConfig) -> dict[str, Any]:
    """Everything a reader needs to trust and repeat the result; plain JSON types.

    Parameters
    ----------
    report : SolveReport
        The outcome.
    source : Origin
        Where the requests came from.
    config : SolverConfig
        Limits and seed.
    """
    from slo_opt import __version__

    instance, evaluation = report.instance, report.evaluation
    versions = {"slo-opt": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for method in report.methods:
        versions.update(method.versions)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "offered": report.offered,
        "admitted": report.admitted,
        "attained": report.attained,
        "value": report.value,
        "offered_value": report.offered_value,
        "attainment": share(report.attained, report.offered),
        "attainment_admitted": share(report.attained, report.admitted),
        "bound": report.bound,
        "bound_by": report.bound_by,
        "gap": report.gap,
        "status": report.status.value,
        "score_rule": instance.score_rule.value,
        "num_replicas": instance.num_replicas,
        "engine": {"name": instance.engine.name, "hash": engine_hash(instance.engine)},
        "trace": {"name": instance.name, **asdict(source)},
        "classes": [
            {
                **asdict(row),
                "attainment": share(row.attained, row.offered),
                "limits": instance.slo_classes[row.name].limits(),
            }
            for row in report.classes
        ],
        "schedule": None
        if report.schedule is None or evaluation is None
        else {
            "batches": len(report.schedule),
            "tokens": evaluation.num_tokens,
            "busy_s": evaluation.busy_s,
            "peak_kv_blocks": evaluation.peak_kv_blocks,
            "kv_blocks": instance.engine.kv_blocks,
        },
        "methods": [
            {
                "method": method.method,
                "status": method.status.value,
                "attained": method.attained,
                "value": method.value,
                "bound": method.bound,
                "gap": None if method.value is None else gap_of(method.value, report.bound),
                "wall_s": round(method.wall_s, 3),
                "versions": method.versions,
                "detail": method.detail,
                "message": method.message,
            }
            for method in report.methods
        ],
        "time_limit_s": config.time_limit_s,
        "seed": config.seed,
        "threads": config.threads,
        "wall_s": round(report.wall_s, 3),
        "versions": versions,
    }
