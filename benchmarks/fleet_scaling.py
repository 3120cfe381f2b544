"""Capacity of 1, 2, 4 and 8 replicas: does a fleet serve more than as many single ones?

    python benchmarks/fleet_scaling.py --data ../shared/data --jobs 2

SLOs-Serve (arXiv 2504.08784) reports 4.61, 6.2 and 5.44 times the capacity of one replica for four, on ChatBot, Coder
and ToolLLM. The same windows of the traces at every size, as there. Finished cells are kept in out/fleet_scaling.jsonl:
run it again to go on. Writes benchmarks/results/fleet_scaling.json and .md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from capacity_table import timed_lines
from fleet_cells import cell
from record import record

from slo_opt.analysis.runs import software_versions
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile

ROOT = Path(__file__).parents[1]
SYSTEMS = (
    ("round-robin", "slos-serve"),
    ("slos-serve", "slos-serve"),
    ("round-robin", "slo-opt"),
    ("slo-opt", "slo-opt"),
)
PAPER = {"chatbot": 4.61, "coder": 6.2, "toolllm": 5.44}


def table(document: dict[str, Any]) -> str:
    """Markdown: a row a scenario and system, a column a size."""
    sizes = document["sizes"]
    lines = [
        f"Requests/s of the fleet at 90 % attainment, {document['engine']}, seed {document['seed']}, learned lengths; "
        "in brackets the ratio to one replica.",
        "",
        f"| scenario | router + policy | {' | '.join(map(str, sizes))} | paper, 4 replicas |",
        f"|---|---|{'---|' * (len(sizes) + 1)}",
    ]
    for row in document["rows"]:
        one = row["rates"][0]
        rates = [f"{rate:.3g}" + (f" ({rate / one:.2f}x)" if one else "") for rate in row["rates"]]
        paper = f"{PAPER[row['scenario']]}x" if row["router"] == "slos-serve" and row["scenario"] in PAPER else ""
        lines.append(f"| {row['scenario']} | {row['router']} + {row['policy']} | {' | '.join(rates)} | {paper} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published traces; without it they are generated")
    parser.add_argument("--scenarios", default="chatbot,coder,toolllm")
    parser.add_argument("--engine", default="opt-6.7b-a100")
    parser.add_argument("--sizes", default="1,2,4,8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of the trace")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--units", type=Path, default=ROOT / "out" / "fleet_scaling.jsonl")
    parser.add_argument("--name", default="fleet_scaling", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    rows = [(scenario, *system) for scenario in options.scenarios.split(",") for system in SYSTEMS]
    tasks = [
        cell(
            scenario,
            options.engine,
            router,
            policy,
            size,
            seed=options.seed,
            duration_s=options.duration,
            data_dir=options.data,
        )
        for scenario, router, policy in rows
        for size in sizes
    ]
    options.units.parent.mkdir(parents=True, exist_ok=True)
    with ResultsFile(options.units) as results:
        found = iter(run_tasks(tasks, Pool(options.jobs), results, timed_lines()))
    document = {
        "engine": options.engine,
        "seed": options.seed,
        "duration_s": options.duration,
        "score_rule": "dslo",
        "target": 0.9,
        "sizes": sizes,
        "software": software_versions(),
        "rows": [],
    }
    for scenario, router, policy in rows:
        cells = [next(found) for _ in sizes]
        document["rows"].append(
            {
                "scenario": scenario,
                "router": router,
                "policy": policy,
                "rates": [one["rate"] for one in cells],
                "cells": cells,
            }
        )
    record(options.name, document, table(document))
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
