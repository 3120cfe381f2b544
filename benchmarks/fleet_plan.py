"""The least fleet, proved and simulated: an hour of each Azure 2023 trace, a day along the ServeGen rate curve.

    python benchmarks/fleet_plan.py --data ../shared/data --jobs 2

Finished units are kept in out/fleet_plan.jsonl: run it again to go on after an interruption. Goal: slo-opt's fleet is
at most 1.10 times the bound. Writes fleet_plan.json and .md to benchmarks/results, and a plot of each day.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capacity_table import timed_lines
from record import RESULTS, record

from slo_opt.analysis.fleet_plan import plan_document, run_plan
from slo_opt.analysis.fleet_promise import Promise
from slo_opt.analysis.fleet_request import Offer, Pair, PlanRequest
from slo_opt.analysis.fleet_source import Day, FleetSource
from slo_opt.analysis.fleet_stress import AS_IS, STRESSES
from slo_opt.analysis.gap_source import TraceSource
from slo_opt.policies.registry import prepare
from slo_opt.report.fleet_over_time import draw_fleet
from slo_opt.simulate.pool import Pool, run_tasks
from slo_opt.simulate.results_file import ResultsFile

ROOT = Path(__file__).parents[1]
CURVE = "traces/servegen_m_large_rates_10min.csv.gz"
PAIRS = "vllm-fcfs+round-robin,slos-serve+slos-serve,polyserve+polyserve,slo-opt+slo-opt"
OURS = "slo-opt+slo-opt"
GOAL = 1.10


@dataclass(frozen=True, slots=True)
class Case:
    """A traffic.

    Parameters
    ----------
    name, file, scenario : str
        For people; the trace; its SLOs.
    scale : float
        Factor on its arrival rate: at 1 a replica or two serve it.
    period_s : float
        Seconds of planned time whose requests are bounded together: a whole hour is too much for one relaxation.
    day_length_s : float or None
        Seconds in which a day of the curve passes; None for the trace as it is.
    """

    name: str
    file: str
    scenario: str
    scale: float
    period_s: float
    day_length_s: float | None = None


CASES = (
    Case("conversation hour", "traces/azure2023_conv.csv.gz", "chatbot", 1.0, 300.0),
    Case("conversation hour at 10x", "traces/azure2023_conv.csv.gz", "chatbot", 10.0, 30.0),
    Case("code hour", "traces/azure2023_code.csv.gz", "coder", 1.0, 300.0),
    Case("code hour at 10x", "traces/azure2023_code.csv.gz", "coder", 10.0, 30.0),
    Case("conversation day at 5x", "traces/azure2023_conv.csv.gz", "chatbot", 5.0, 3600.0, 720.0),
    Case("code day at 5x", "traces/azure2023_code.csv.gz", "coder", 5.0, 3600.0, 1440.0),
)


def request_of(case: Case, options: argparse.Namespace) -> PlanRequest:
    """What is asked of a case."""
    window = None if options.window is None else tuple(map(float, options.window.split(":")))
    trace = TraceSource(
        options.data / case.file, options.engine, case.scenario, window=window, seed=options.seed, unservable="lose"
    )
    day = None if case.day_length_s is None else Day(options.data / CURVE, options.day, case.day_length_s)
    pairs = tuple(Pair(*name.split("+")) for name in options.pairs.split(",") if name)
    return PlanRequest(
        source=FleetSource(trace, case.scale, day),
        promise=Promise(options.attainment),
        offers=(Offer(options.engine),),
        pairs=pairs,
        stresses=STRESSES if options.stress else (AS_IS,),
        period_s=case.period_s,
        time_limit_s=options.time_limit,
        seed=options.seed,
    )


def table(documents: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a case and stress."""
    pairs = next(iter(documents.values()))["pairs"]
    lines = [
        f"| traffic | stress | offered | proved | fraction | {' | '.join(pairs)} | bound, s |",
        f"|---|---|---|---|---|{'---|' * len(pairs)}---|",
    ]
    for name, document in documents.items():
        for row in document["stresses"]:
            bound = row["bound"]
            if bound is None:
                continue
            found = {policy["pair"]: policy for policy in row["policies"]}
            cells = [_cell(found.get(pair), document["limit"]) for pair in pairs]
            proved = f"> {document['limit']}" if bound["counts"] is None else str(bound["counts"][0])
            proved = proved if bound["attainable"] else f"none: {bound['servable'] / bound['offered']:.2%} attainable"
            proved += "" if bound["status"] == "optimal" else " *"
            fraction = "–" if bound["fraction"] is None else f"{bound['fraction']:.2f}"
            lines.append(
                f"| {name} | {row['name']} | {bound['offered']} | {proved} | {fraction} | {' | '.join(cells)} "
                f"| {bound['wall_s'] or 0:.0f} |"
            )
    lines += ["", "`*` the time limit came first: more time may prove more."]
    lines += ["", *(_day_line(name, document) for name, document in documents.items() if document["source"]["day"])]
    ratios = [
        policy["ratio"]
        for document in documents.values()
        for policy in document["stresses"][0]["policies"]
        if policy["pair"] == OURS and policy["ratio"] is not None
    ]
    if ratios:
        met = sum(ratio <= GOAL for ratio in ratios)
        lines += ["", f"{OURS} is at most {GOAL:.2f}x the bound in {met} of {len(ratios)} (without stress)."]
    return "\n".join(lines) + "\n"


def _cell(policy: dict[str, Any] | None, limit: int) -> str:
    if policy is None:
        return "–"
    return f"> {limit}" if policy["count"] is None else f"{policy['count']} ({policy['ratio']:.2f}x)"


def _day_line(name: str, document: dict[str, Any]) -> str:
    over = document["over_time"]
    gpus = [period["gpus"] for period in over["periods"]]
    follows = "–" if over["gpu_hours"] is None else f"{over['gpu_hours']:.0f}"
    never = "–" if over["static_gpu_hours"] is None else f"{over['static_gpu_hours']:.0f}"
    return (
        f"- {name}: proved hour by hour {', '.join('–' if count is None else str(count) for count in gpus)}; "
        f"GPU·hours {follows} if the fleet follows, {never} if it never changes"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published traces and the rate curve")
    parser.add_argument("--engine", default="llama-3-8b-a100")
    parser.add_argument("--attainment", type=float, default=0.99)
    parser.add_argument("--pairs", default=PAIRS, help="comma list of POLICY+ROUTER; empty for bounds alone")
    parser.add_argument("--stress", action="store_true", help="under stress as well")
    parser.add_argument("--window", metavar="START:END", help="part of the traces, in seconds")
    parser.add_argument("--day", type=int, default=2, help="of the rate curve")
    parser.add_argument("--only", default="", help="comma list of words; cases whose name has one of them")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds a bound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--units", type=Path, default=ROOT / "out" / "fleet_plan.jsonl")
    parser.add_argument("--name", default="fleet_plan", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    words = [word for word in options.only.split(",") if word]
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    options.units.parent.mkdir(parents=True, exist_ok=True)
    prepare([name.split("+")[0] for name in options.pairs.split(",") if name])
    documents: dict[str, dict[str, Any]] = {}
    with ResultsFile(options.units) as results:
        for case in cases:
            request = request_of(case, options)
            instance = request.instance()
            progress = timed_lines()

            def run(tasks: Any, progress: Any = progress) -> None:
                run_tasks(tasks, Pool(options.jobs), results, progress)

            run_plan(request, instance, results.results, run)
            documents[case.name] = plan_document(request, instance, results.results)
            print(table({case.name: documents[case.name]}), file=sys.stderr, flush=True)
    record(options.name, documents, table(documents))
    if options.name:
        for number, document in enumerate(document for document in documents.values() if document["source"]["day"]):
            draw_fleet(document, RESULTS / f"{options.name}-day-{number}.png")
    print(table(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
