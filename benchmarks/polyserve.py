"""PolyServe's evaluation: a fleet of 20, its mix of SLOs, co-located and with prefill and decode apart.

    python benchmarks/polyserve.py --jobs 2

TTFT 300, 500 or 1,000 ms, TPOT 20, 30, 50, 100 ms at 10, 20, 30, 40 %; Poisson arrivals, and the same with the shares
of the TPOTs turned round for the middle third of the requests. Goodput is the highest rate at which 90 % are attained,
at each contender's best static setting; beside it the lowest rate at which a proved bound says that nobody attains
90 %, on the same requests. The paper (arXiv 2507.17769) reports 1.18 times the best baseline co-located, 1.23 apart.
Apart, a tenth to six tenths of the fleet prefill, whichever is best; there the baselines run vLLM's own scheduler: no
decode waits for a prompt that Sarathi would have to cut. Finished cells are kept in out/polyserve.jsonl: run it again
to go on. Writes benchmarks/results/polyserve.json and .md.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from capacity_table import timed_lines
from fleet_cells import INVERSION, bound_cell, cell
from record import record

from slo_opt.analysis.runs import software_versions
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile
from slo_opt.simulate.tasks import Task

ROOT = Path(__file__).parents[1]
CONTENDERS = (
    ("round-robin", "sarathi"),
    ("join-shortest-queue", "sarathi"),
    ("least-loaded", "sarathi"),
    ("lmetric", "sarathi"),
    ("llm-d-best-fit", "sarathi"),
    ("llm-d-worst-fit", "sarathi"),
    ("aibrix-pack-load", "sarathi"),
    ("slos-serve", "slos-serve"),
    ("polyserve", "polyserve"),
    ("slo-opt", "slo-opt"),
)
APART = (
    ("round-robin", "vllm-fcfs"),
    ("join-shortest-queue", "vllm-fcfs"),
    ("least-loaded", "vllm-fcfs"),
    ("polyserve", "polyserve"),
    ("slo-opt", "slo-opt"),
)
SHAPES = {"together": CONTENDERS, "apart": APART}
ROUTERS = [router for router, _ in CONTENDERS]
SWITCHES = ("tiers", "gradient", "promotion", "claim", "pending", "wait_aware", "continuous")
LOADS = ("poisson", INVERSION)
Row = dict[str, Any]


def splits_of(num_replicas: int) -> list[tuple[int, int]]:
    """Replicas that prefill and that decode, first those that are most often the best."""
    prefill = dict.fromkeys(max(1, round(num_replicas * share)) for share in (0.5, 0.6, 0.4, 0.3, 0.2, 0.1))
    return [(p, num_replicas - p) for p in prefill if p < num_replicas]


def contenders(shape: str, routers: Sequence[str]) -> list[tuple[str, str]]:
    """Router and policy of those that are asked for."""
    return [contender for contender in SHAPES[shape] if contender[0] in routers]


def cells_of(options: argparse.Namespace) -> dict[tuple[str, ...], Task]:
    """Every cell by what it is: (load, shape, router, policy) or (load, "bound") or (load, "without", switch)."""
    found: dict[tuple[str, ...], Task] = {}
    common = {"duration_s": options.duration, "seed": options.seed}
    for load in LOADS:
        for shape in options.shapes:
            splits = splits_of(options.replicas) if shape == "apart" else ()
            for router, policy in contenders(shape, options.routers):
                found[load, shape, router, policy] = cell(
                    load, options.engine, router, policy, options.replicas, splits=splits, **common
                )
        for switch in SWITCHES if options.ablation else ():
            off = {switch: False}
            found[load, "without", switch] = cell(
                load, options.engine, "polyserve", "polyserve", options.replicas, router_setting=off, **common
            )
        if options.bound_limit:
            found[load, "bound"] = bound_cell(
                load, options.engine, options.replicas, limit_s=options.bound_limit, start=options.bound_start, **common
            )
    return found


def table(document: Row) -> str:
    """Markdown."""
    bounds = document["bounds"]
    lines = [
        f"Requests/s of {document['replicas']} x {document['engine']} at 90 % attainment, "
        f"{document['duration_s']:g} s of arrivals, seed {document['seed']}, learned lengths"
        + ("; in brackets the share of the rate at which it is proved that nobody attains 90 %." if bounds else "."),
        "",
        f"| shape | router + policy | {' | '.join(LOADS)} |",
        f"|---|---|{'---|' * len(LOADS)}",
    ]
    for row in document["rows"]:
        figures = []
        for load in LOADS:
            rate, bound = row["rates"][load], bounds.get(load)
            figures.append(f"{rate:.1f}" + ("" if bound is None else f" ({rate / bound:.0%})"))
        lines.append(f"| {row['shape']} | {row['router']} + {row['policy']} | {' | '.join(figures)} |")
    if document["without"]:
        lines += ["", f"| PolyServe without | {' | '.join(LOADS)} |", f"|---|{'---|' * len(LOADS)}"]
        for switch, rates in document["without"].items():
            lines.append(f"| {switch} | {' | '.join(f'{rates[load]:.1f}' for load in LOADS)} |")
    return "\n".join(lines) + "\n"


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads a comma list of known names."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; known: {', '.join(known)}")
        return names

    return read


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="llama-3-8b-h100")
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--duration", type=float, default=20.0, help="seconds in which requests arrive")
    parser.add_argument("--shapes", type=_names(SHAPES), default=list(SHAPES), help="comma list: together, apart")
    parser.add_argument("--routers", type=_names(ROUTERS), default=ROUTERS, help="comma list, of CONTENDERS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ablation", dest="ablation", action="store_false")
    parser.add_argument("--bound-limit", type=float, default=120.0, help="seconds a proof; 0 for none")
    parser.add_argument("--bound-start", type=float, default=800.0, help="rate at which the search of the bound begins")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--units", type=Path, default=ROOT / "out" / "polyserve.jsonl")
    parser.add_argument("--name", default="polyserve", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    cells = cells_of(options)
    options.units.parent.mkdir(parents=True, exist_ok=True)
    with ResultsFile(options.units) as results:
        done = run_tasks(list(cells.values()), Pool(options.jobs), results, timed_lines())
    found = dict(zip(cells, done, strict=True))
    document: Row = {
        "engine": options.engine,
        "replicas": options.replicas,
        "duration_s": options.duration,
        "seed": options.seed,
        "score_rule": "dslo",
        "target": 0.9,
        "shapes": options.shapes,
        "software": software_versions(),
        "bounds": {load: found[load, "bound"]["rate"] for load in LOADS if (load, "bound") in found},
        "rows": [
            {
                "shape": shape,
                "router": router,
                "policy": policy,
                "rates": {load: found[load, shape, router, policy]["rate"] for load in LOADS},
            }
            for shape in options.shapes
            for router, policy in contenders(shape, options.routers)
        ],
        "without": {
            switch: {load: found[load, "without", switch]["rate"] for load in LOADS}
            for switch in (SWITCHES if options.ablation else ())
        },
        "cells": {"; ".join(key): value for key, value in found.items()},
    }
    record(options.name, document, table(document))
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
