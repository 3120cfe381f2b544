"""Capacity of every policy on the six scenarios of SLOs-Serve and three engines, at 90 % attainment.

    python benchmarks/capacity_table.py --data ../shared/data --jobs 2

Finished units are kept in out/capacity_table.jsonl: run it again to go on after an interruption. A policy whose code
has changed since is measured anew with --rerun NAME. Writes benchmarks/results/capacity_table.json, .md and .png.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, record

from slo_opt.analysis.capacity import CapacityRequest, capacity_document
from slo_opt.policies.registry import POLICIES
from slo_opt.report.capacity import setting_text
from slo_opt.report.capacity_bars import draw_capacity
from slo_opt.simulate.capacity import CapacityOptions
from slo_opt.simulate.pool import Pool, Progress, run_tasks
from slo_opt.simulate.results_file import ResultsFile

ROOT = Path(__file__).parents[1]
SCENARIOS = "chatbot,coder,summarizer,mixed,toolllm,reasoning"
ENGINES = "opt-6.7b-a100,llama-3-8b-a100,llama-3-8b-h100"


def table(document: dict[str, Any]) -> str:
    """Markdown: a row a cell, a column a policy, then the geometric means and the settings that were best."""
    policies = [row["policy"] for row in document["geometric_means"]]
    lines = [
        f"Requests/s per GPU at {document['target']:.0%} attainment, seeds: {document['seeds']}, lengths: "
        f"{document['lengths']}; in brackets the ratio to the best of {', '.join(document['baselines'])}.",
        "",
        f"| scenario | engine | {' | '.join(policies)} |",
        f"|---|---|{'---|' * len(policies)}",
    ]
    for cell in document["cells"]:
        rows = {row["policy"]: row for row in cell["rows"]}
        top = max(row["rate_per_gpu"] for row in cell["rows"])
        cells = [_rate(rows.get(policy), top) for policy in policies]
        lines.append(f"| {cell['scenario']} | {cell['engine']} | {' | '.join(cells)} |")
    means = ["–" if row["ratio"] is None else f"{row['ratio']:.2f}x" for row in document["geometric_means"]]
    lines += [f"| geometric mean | of the ratios | {' | '.join(means)} |", "", "Best static settings:", ""]
    for cell in document["cells"]:
        words = [f"{row['policy']} {setting_text(row)}" for row in cell["rows"] if row["settings_tried"] > 1]
        lines.append(f"- {cell['scenario']}, {cell['engine']}: {'; '.join(words)}")
    return "\n".join(lines) + "\n"


def _rate(row: dict[str, Any] | None, top: float) -> str:
    if row is None:
        return "–"
    interval = "" if row["ci95"] is None else f" ± {(row['ci95'][1] - row['ci95'][0]) / 2:.2g}"
    ratio = "" if row["ratio"] is None else f" ({row['ratio']:.2f}x)"
    text = f"{row['rate_per_gpu']:.3g}{interval}{ratio}"
    return f"**{text}**" if row["rate_per_gpu"] == top else text


def forget(path: Path, policies: set[str]) -> None:
    """Take the units of these policies out of the file."""
    if policies and path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["inputs"].get("policy") not in policies))


def timed_lines() -> Progress:
    """Progress as lines on stderr, each with the seconds since now."""
    began_s = time.perf_counter()

    def progress(label: str, share: float | None) -> None:
        print(f"{time.perf_counter() - began_s:6.0f} s  {share or 0:4.0%}  {label}", file=sys.stderr, flush=True)

    return progress


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published traces; without it they are generated")
    parser.add_argument("--scenarios", default=SCENARIOS)
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--lengths", default="quantile")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of arrivals")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--ray", help="address of a Ray cluster, or local")
    parser.add_argument("--units", type=Path, default=ROOT / "out" / "capacity_table.jsonl")
    parser.add_argument("--rerun", default="", help="comma list of policies to measure anew")
    parser.add_argument("--name", default="capacity_table", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    request = CapacityRequest(
        tuple(options.scenarios.split(",")),
        tuple(options.engines.split(",")),
        tuple(options.policies.split(",")),
        options.seeds,
        options.duration,
        options.data,
        options=CapacityOptions(lengths=options.lengths),
    )
    options.units.parent.mkdir(parents=True, exist_ok=True)
    forget(options.units, {name for name in options.rerun.split(",") if name})
    progress = timed_lines()
    with ResultsFile(options.units) as results:
        run_tasks(request.tasks(), Pool(options.jobs, options.ray), results, progress)
        document = capacity_document(request, results.results)
    record(options.name, document, table(document))
    if options.name:
        draw_capacity(document, RESULTS / f"{options.name}.png")
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
