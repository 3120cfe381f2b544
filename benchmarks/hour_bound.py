"""A proved bound on a whole hour of each Azure 2023 trace: time and peak memory.

    python benchmarks/hour_bound.py --data ../shared/data/formats

Method highs alone, limit 600 s, each trace in a process of its own. Writes benchmarks/results/hour_bound.json and .md.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from gap_table import NEAR_90, TRACES
from record import record

from slo_opt.analysis.solve import servable_value, sharpened
from slo_opt.domain.engines import engine_named
from slo_opt.solvers.interface import SolverConfig
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.read import read_trace

ENGINES = ("opt-6.7b-a100", "llama-3-8b-a100")
GIB = 2**30


def bound(data: Path, trace: str, engine: str, scale: float, limit_s: float) -> dict[str, Any]:
    """One trace, in this process."""
    name, scenario, _ = TRACES[trace]
    instance = read_trace(
        data / name, scenario=scenario, engine=engine_named(engine), scale=scale, seed=0
    ).to_instance()
    result = schedule_solver("highs").solve(instance, SolverConfig(time_limit_s=limit_s))
    dual = result.bounds.dual
    return {
        "trace": trace,
        "engine": engine,
        "scale": scale,
        "hours": (instance.requests[-1].arrival_s - instance.requests[0].arrival_s) * scale / 3600,
        "offered": sum(instance.value_of(request) > 0 for request in instance.requests),
        "servable": servable_value(instance),
        "bound": None if dual is None else sharpened(dual, instance),
        "status": result.termination.value,
        "wall_s": round(result.stats.wall_s, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2),
        "detail": result.stats.detail,
        "versions": result.stats.versions,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| trace | engine | rate | offered | servable alone | relaxation (after s) | bound | s | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row["detail"]
        relaxed = f"{first['relaxation_bound']:.1f} ({first['relaxation_s']:.0f})" if "relaxation_s" in first else "-"
        bound = "-" if row["bound"] is None else f"{row['bound']:g}"
        lines.append(
            f"| {row['trace']} | {row['engine']} | {row['scale']:g} | {row['offered']} | {row['servable']:g} "
            f"| {relaxed} | {bound} | {row['wall_s']:.0f} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Azure 2023 traces")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds a trace")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma list of engines")
    parser.add_argument("--only", help="one cell as trace:engine; prints it as JSON, writes nothing")
    options = parser.parse_args()
    if options.only:
        trace, engine = options.only.split(":")
        print(json.dumps(bound(options.data, trace, engine, NEAR_90[trace, engine], options.time_limit)))
        return 0
    rows = []
    for engine in options.engines.split(","):
        for trace in TRACES:
            command = [sys.executable, __file__, "--data", str(options.data), "--only", f"{trace}:{engine}"]
            command += ["--time-limit", str(options.time_limit)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    record("hour_bound", rows, table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
