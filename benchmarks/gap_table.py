"""Proved bound, schedule found and gap on the two windows of the Azure 2023 traces, on three engines, at two rates.

    python benchmarks/gap_table.py --data ../shared/data/formats

Each cell is one run of `solve_instance` with methods dp, search and highs and a limit of 60 s. The rates are those at
which about 90 % of the requests can be attained, and twice that. Writes benchmarks/results/gap_table.json and .md.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, record

from slo_opt.analysis.solve import SolveReport, solve_instance
from slo_opt.domain.engines import engine_named
from slo_opt.solvers.interface import SolverConfig
from slo_opt.traces.read import read_trace

METHODS = ("dp", "search", "highs")
TRACES = {  # file, scenario, window of the papers
    "code": ("AzureLLMInferenceTrace_code.csv.gz", "coder", (1786.0, 2086.0)),
    "conversation": ("AzureLLMInferenceTrace_conv.csv.gz", "chatbot", (900.0, 1200.0)),
}
ENGINES = ("opt-6.7b-a100", "llama-3-8b-a100", "llama-3-8b-h100")
NEAR_90 = {  # arrival-rate scaling at which about 90 % can be attained, found by trying
    ("code", "opt-6.7b-a100"): 1.45,
    ("code", "llama-3-8b-a100"): 0.7,
    ("code", "llama-3-8b-h100"): 2.3,
    ("conversation", "opt-6.7b-a100"): 1.9,
    ("conversation", "llama-3-8b-a100"): 1.8,
    ("conversation", "llama-3-8b-h100"): 4.5,
}


def solve(data: Path, trace: str, engine: str, scale: float, limit_s: float) -> SolveReport:
    """One cell."""
    name, scenario, window = TRACES[trace]
    instance = read_trace(
        data / name, scenario=scenario, engine=engine_named(engine), window=window, scale=scale, seed=0
    ).to_instance()
    return solve_instance(instance, METHODS, SolverConfig(time_limit_s=limit_s, threads=1))


def row_of(report: SolveReport, **cell: Any) -> dict[str, Any]:
    """The figures of one cell."""
    methods = {
        item.method: {
            "status": item.status.value,
            "attained": item.attained,
            "bound": item.bound,
            "wall_s": round(item.wall_s, 2),
            **{key: item.detail[key] for key in ("relaxation_bound", "relaxation_s") if key in item.detail},
        }
        for item in report.methods
    }
    return {
        **cell,
        "offered": report.offered,
        "admitted": report.admitted,
        "attained": report.attained,
        "bound": report.bound,
        "bound_by": report.bound_by,
        "gap": report.gap,
        "status": report.status.value,
        "score_rule": report.instance.score_rule.value,
        "wall_s": round(report.wall_s, 2),
        "methods": methods,
        "versions": {name: version for item in report.methods for name, version in item.versions.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| trace | engine | rate | offered | admitted | attained | of offered | bound | gap | relaxation alone | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        relaxed = row["methods"]["highs"].get("relaxation_bound")
        lines.append(
            f"| {row['trace']} | {row['engine']} | {row['scale']:g} | {row['offered']} | {row['admitted']} "
            f"| {row['attained']} | {row['attained'] / row['offered']:.1%} | {row['bound']:g} | {row['gap']:.2%} "
            f"| {'–' if relaxed is None else format(relaxed, '.1f')} | {row['wall_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Azure 2023 traces")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a cell")
    parser.add_argument("--only", help="one cell as trace:engine:scale; prints, writes nothing")
    parser.add_argument("--trace", choices=TRACES, help="run these cells again, keep the other rows of the results")
    options = parser.parse_args()
    cells = [(t, e, NEAR_90[t, e] * double) for double in (1, 2) for t in TRACES for e in ENGINES]
    order = {cell: position for position, cell in enumerate(cells)}
    cells = [cell for cell in cells if options.trace in (None, cell[0])]
    if options.only:
        trace, engine, scale = options.only.split(":")
        cells = [(trace, engine, float(scale))]
    rows = []
    for trace, engine, scale in cells:
        began = time.perf_counter()
        report = solve(options.data, trace, engine, scale, options.time_limit)
        rows.append(row_of(report, trace=trace, engine=engine, scale=scale))
        print(table(rows[-1:]).splitlines()[-1], f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if options.trace:
        before = json.loads((RESULTS / "gap_table.json").read_text())
        rows += [row for row in before if row["trace"] != options.trace]
        rows.sort(key=lambda row: order[row["trace"], row["engine"], row["scale"]])
    if not options.only:
        record("gap_table", rows, table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
