"""Share of the certified bound that each policy attains, at 0.6 to 1.4 of the capacity of slo-opt.

    python benchmarks/policy_gap.py --data ../shared/data --jobs 2

Every (scenario, engine) has one capacity, one bound a load, and one run a policy, load and kind of length knowledge.
Units are kept in out/policy_gap.jsonl: run it again to go on after an interruption. Writes
benchmarks/results/policy_gap.json and .md, and a picture of each table.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from slo_opt.analysis.capacity import CapacityRequest
from slo_opt.analysis.gap import GapRequest
from slo_opt.analysis.gap_source import ScenarioSource
from slo_opt.analysis.gap_table import gap_document
from slo_opt.policies.registry import POLICIES
from slo_opt.report.gap_map import draw_gap
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile

sys.path.insert(0, str(Path(__file__).parent))
from capacity_table import ROOT, SCENARIOS, forget, timed_lines
from record import RESULTS, record

LOADS = (0.6, 0.8, 1.0, 1.2, 1.4)


def table(documents: list[dict[str, Any]]) -> str:
    """Markdown: for each scenario, engine and length knowledge a row a policy, a column a load."""
    lines = []
    for document in documents:
        loads = document["loads"]
        lines += [
            f"### {document['name']}, lengths {document['lengths']}",
            "",
            f"| value / bound | {' | '.join(_head(row) for row in loads)} |",
            f"|---|{'---|' * len(loads)}",
            f"| offered | {' | '.join(str(row['offered']) for row in loads)} |",
            f"| bound | {' | '.join(format(row['bound'], 'g') for row in loads)} |",
        ]
        for number, policy in enumerate(document["policies"]):
            shares = [f"{row['policies'][number]['of_bound']:.1%}" for row in loads]
            lines.append(f"| {policy} | {' | '.join(shares)} |")
        lines.append("")
    return "\n".join(lines)


def _head(row: dict[str, Any]) -> str:
    return f"{row['load']:g} ({row['rate']:.3g}/s)"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published traces; without it they are generated")
    parser.add_argument("--scenarios", default=SCENARIOS)
    parser.add_argument("--engines", default="opt-6.7b-a100")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--lengths", default="oracle,quantile")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--reference", default="slo-opt", help="policy whose capacity is load 1")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a bound")
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of arrivals")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--ray", help="address of a Ray cluster, or local")
    parser.add_argument("--units", type=Path, default=ROOT / "out" / "policy_gap.jsonl")
    parser.add_argument("--rerun", default="", help="comma list of policies to run anew")
    parser.add_argument("--name", default="policy_gap", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    cells = [(scenario, engine) for engine in options.engines.split(",") for scenario in options.scenarios.split(",")]
    policies = tuple(options.policies.split(","))
    loads = tuple(map(float, options.loads.split(",")))
    pool = Pool(options.jobs, options.ray)
    options.units.parent.mkdir(parents=True, exist_ok=True)
    forget(options.units, {name for name in options.rerun.split(",") if name})
    progress = timed_lines()
    with ResultsFile(options.units) as results:
        first = [
            CapacityRequest((scenario,), (engine,), (options.reference,), 1, options.duration, options.data).task(
                scenario, engine, options.reference, 0
            )
            for scenario, engine in cells
        ]
        capacities = [found["rate"] for found in run_tasks(first, pool, results, progress)]
        requests = [
            GapRequest(
                ScenarioSource(scenario, engine, rate, options.duration, 0, options.data),
                loads,
                policies,
                lengths,
                time_limit_s=options.time_limit,
            )
            for (scenario, engine), rate in zip(cells, capacities, strict=True)
            for lengths in options.lengths.split(",")
        ]
        run_tasks([task for request in requests for task in request.tasks()], pool, results, progress)
        documents = [gap_document(request, results.results) for request in requests]
    record(options.name, documents, table(documents))
    if options.name:
        for (scenario, engine), document in zip(
            [cell for cell in cells for _ in options.lengths.split(",")], documents, strict=True
        ):
            draw_gap(document, RESULTS / f"{options.name}-{scenario}-{engine}-{document['lengths']}.png")
    print(table(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
