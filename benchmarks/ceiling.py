"""How far any scheduler could go: the certified bound at 2.5 times the capacity of the best of vLLM and Sarathi-Serve.

    python benchmarks/ceiling.py --data ../shared/data

Reads benchmarks/results/capacity_table.json. Where the bound is below 90 % of the offered requests, no scheduler
whatever has 2.5 times that capacity on that workload. Writes benchmarks/results/ceiling.json and .md after every cell,
and goes on where it stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from slo_opt.analysis.solve import sharpened
from slo_opt.domain.engines import engine_named
from slo_opt.simulate.workload import Workload
from slo_opt.solvers.interface import SolverConfig
from slo_opt.solvers.registry import schedule_solver

RESULTS = Path(__file__).parent / "results"
FACTOR = 2.5


def table(rows: list[dict[str, Any]], target: float) -> str:
    """Markdown."""
    lines = [
        f"| scenario | engine | best of vLLM, Sarathi | slo-opt | at {FACTOR} times: rate | offered | bound | "
        f"{target:.0%} possible |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "–" if row["bound"] is None else f"{row['bound']:g} ({row['bound'] / row['offered']:.1%})"
        verdict = "not ruled out" if row["bound"] is None or row["bound"] >= target * row["offered"] else "no, proved"
        ratio = row["slo_opt"] / row["baseline"]
        lines.append(
            f"| {row['scenario']} | {row['engine']} | {row['baseline']:.3g} | {row['slo_opt']:.3g} ({ratio:.2f}x) "
            f"| {row['rate']:.3g} | {row['offered']} | {share} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for the capacity table")
    parser.add_argument("--time-limit", type=float, default=40.0, help="seconds a bound")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    capacity = json.loads((RESULTS / "capacity_table.json").read_text())
    kept = RESULTS / "ceiling.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() and not options.fresh else []
    done = {(row["scenario"], row["engine"]) for row in rows}
    for cell in capacity["cells"]:
        if (cell["scenario"], cell["engine"]) in done:
            continue
        rates = {row["policy"]: row["rate_per_gpu"] for row in cell["rows"]}
        baseline = max(rates[policy] for policy in capacity["baselines"] if policy in rates)
        rate = FACTOR * baseline
        instance = Workload(cell["scenario"], engine_named(cell["engine"]), rate, 300.0, 0, options.data).instance()
        result = schedule_solver("highs").solve(instance, SolverConfig(time_limit_s=options.time_limit))
        dual = result.bounds.dual
        rows.append(
            {
                "scenario": cell["scenario"],
                "engine": cell["engine"],
                "baseline": baseline,
                "slo_opt": rates["slo-opt"],
                "rate": rate,
                "offered": sum(instance.value_of(request) > 0 for request in instance.requests),
                "bound": None if dual is None else sharpened(dual, instance),
                "status": result.termination.value,
                "wall_s": round(result.stats.wall_s, 1),
            }
        )
        print(table(rows[-1:], capacity["target"]).splitlines()[-1], file=sys.stderr, flush=True)
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "ceiling.md").write_text(table(rows, capacity["target"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
