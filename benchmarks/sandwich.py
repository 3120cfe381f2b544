"""Level 3 bound >= level 1 optimum >= every schedule, on small random instances: 0 exceptions are demanded.

    python benchmarks/sandwich.py --instances 500

Each instance is solved exactly on batches (method cpsat) and by every other method; each method's schedule is replayed
by `evaluate`, and each method's bound is compared with the exact optimum. Takes about 2 s an instance. Writes
benchmarks/results/sandwich.json and sandwich.md. Exit code 1 if there is an exception.
"""

import argparse
import random
import sys
import time
from collections import Counter
from typing import Any

from record import record

from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import ScoreRule
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.registry import schedule_solver
from slo_opt.solvers.versions import check_versions
from slo_opt.traces.small import small_instance

OTHERS = ("highs", "cvxpy", "dp", "search")
TOLERANCE = 1e-6
LIMIT_S = 120.0


def instance_of(seed: int) -> Instance:
    """The instance of a seed; the three score rules take turns."""
    return small_instance(random.Random(seed), score_rule=list(ScoreRule)[seed % 3])


def compare(seed: int, others: tuple[str, ...] = OTHERS, search_s: float = 1.0) -> dict[str, Any]:
    """What the exact model and the other methods say about one instance, and what contradicts what."""
    instance = instance_of(seed)
    row: dict[str, Any] = {
        "seed": seed,
        "rule": instance.score_rule.value,
        "requests": len(instance.requests),
        "offered": sum(instance.value_of(request) for request in instance.requests),
        "methods": {},
        "exceptions": [],
    }
    for name in ("cpsat", *others):
        began = time.perf_counter()
        result = schedule_solver(name).solve(
            instance, SolverConfig(time_limit_s=search_s if name == "search" else LIMIT_S)
        )
        said = {"status": result.termination.value, "value": None, "bound": result.bounds.dual}
        if result.schedule is not None:
            outcome = evaluate(instance, result.schedule)
            said["value"] = outcome.value
            row["exceptions"] += [f"{name}: illegal: {violation}" for violation in outcome.violations[:1]]
        said["seconds"] = round(time.perf_counter() - began, 3)
        row["methods"][name] = said
    exact = row["methods"]["cpsat"]
    for name, said in row["methods"].items():
        if said["bound"] is not None and said["bound"] < exact["value"] - TOLERANCE:
            row["exceptions"].append(f"{name}: bound {said['bound']} below the schedule of {exact['value']}")
        if said["value"] is not None and said["value"] > exact["bound"] + TOLERANCE:
            row["exceptions"].append(f"{name}: schedule of {said['value']} above the exact bound {exact['bound']}")
    return row


def summary(rows: list[dict[str, Any]], others: tuple[str, ...]) -> dict[str, Any]:
    """Counts over all instances."""
    exact = sum(row["methods"]["cpsat"]["value"] for row in rows)
    methods: dict[str, Any] = {}
    for name in ("cpsat", *others):
        said = [row["methods"][name] for row in rows]
        bounds = [s["bound"] for s in said if s["bound"] is not None]
        values = [s["value"] for s in said if s["value"] is not None]
        methods[name] = {
            "bound_over_optimum": round(sum(bounds) / exact, 4) if len(bounds) == len(rows) else None,
            "value_over_optimum": round(sum(values) / exact, 4) if len(values) == len(rows) else None,
            "median_s": sorted(s["seconds"] for s in said)[len(said) // 2],
        }
    return {
        "instances": len(rows),
        "exceptions": sum(len(row["exceptions"]) for row in rows),
        "certified": sum(row["methods"]["cpsat"]["status"] == Termination.OPTIMAL for row in rows),
        "score_rules": dict(Counter(row["rule"] for row in rows)),
        "all_attainable": sum(row["methods"]["cpsat"]["value"] >= row["offered"] - TOLERANCE for row in rows),
        "offered": sum(row["offered"] for row in rows),
        "optimum": exact,
        "methods": methods,
    }


def table(total: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{total['instances']} instances, {total['certified']} certified optimal, {total['exceptions']} exceptions.",
        "",
        "| method | bound / optimum | value / optimum | median s |",
        "|---|---|---|---|",
    ]
    for name, said in total["methods"].items():
        figures = [
            "–" if said[key] is None else f"{said[key]:.4f}" for key in ("bound_over_optimum", "value_over_optimum")
        ]
        lines.append(f"| {name} | {figures[0]} | {figures[1]} | {said['median_s']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(OTHERS), help="beside the exact model")
    options = parser.parse_args()
    others = tuple(options.methods.split(","))
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.instances):
        rows.append(compare(seed, others))
        for exception in rows[-1]["exceptions"]:
            print(f"seed {seed}: {exception}", flush=True)
        if len(rows) % 25 == 0:
            print(f"{len(rows)} instances", file=sys.stderr, flush=True)
    total = summary(rows, others)
    versions = {row.name: row.installed for row in check_versions()}
    report = {"summary": total, "first_seed": options.first_seed, "versions": versions, "rows": rows}
    record("sandwich", report, table(total))
    print(table(total))
    return 1 if total["exceptions"] else 0


if __name__ == "__main__":
    sys.exit(main())
