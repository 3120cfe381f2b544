"""What noise in batch times costs slo-opt, by how wide a margin it keeps before the deadlines of decodes.

    python benchmarks/noise_margin.py

One simulated replica near its capacity; attained of offered over three seeds, by the spread of each batch time and the
mean deviations of the margin (`deviations` of the policy). Writes benchmarks/results/noise_margin.json and .md.
"""

import argparse
import sys
from typing import Any

from record import record
from rich.progress import track

from slo_opt.analysis.runs import software_versions
from slo_opt.simulate.metrics import run_metrics
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.play import play
from slo_opt.traces.generate import generate

TRAFFIC = (
    ("mixed", 5.0, "opt-6.7b-a100"),
    ("coder", 4.0, "opt-6.7b-a100"),
    ("polyserve", 22.0, "llama-3-8b-h100"),
    ("chatbot", 8.0, "opt-6.7b-a100"),
)
NOISE = (0.0, 0.05, 0.15, 0.25)
DEVIATIONS = (2.0, 3.0, 4.0, 6.0)
SEEDS = (1, 2, 3)


def row_of(scenario: str, rate: float, engine: str, noise: float, duration_s: float) -> dict[str, Any]:
    """Offered, and attained by deviations."""
    offered, attained = 0, dict.fromkeys(DEVIATIONS, 0)
    for seed in SEEDS:
        instance = generate(scenario, rate=rate, duration_s=duration_s, seed=seed, engine=engine).to_instance()
        for deviations in DEVIATIONS:
            options = SimulationOptions(seed=seed, noise=noise)
            total = run_metrics(play(instance, "slo-opt", {"deviations": deviations}, options=options)).total
            attained[deviations] += total.attained
        offered += total.offered
    about = {"scenario": scenario, "rate": rate, "engine": engine, "noise": noise}
    return {**about, "offered": offered, "attained": {str(key): value for key, value in attained.items()}}


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    columns = [f"{deviations:g}" for deviations in DEVIATIONS]
    lines = [
        f"Attained of offered, seeds {', '.join(map(str, SEEDS))} of {document['duration_s']:g} s, score rule `dslo`, "
        "learned lengths, by mean deviations kept.",
        "",
        f"| traffic | noise | offered | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for row in document["rows"]:
        shares = [f"{attained / row['offered']:.1%}" for attained in row["attained"].values()]
        traffic = f"{row['scenario']}, {row['rate']:g}/s, {row['engine']}"
        lines.append(f"| {traffic} | {row['noise']:g} | {row['offered']} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of arrivals")
    parser.add_argument("--name", default="noise_margin", help="of the results; empty prints and writes nothing")
    options = parser.parse_args()
    cells = [(*traffic, noise) for traffic in TRAFFIC for noise in NOISE]
    rows = [row_of(*cell, options.duration) for cell in track(cells, "noise and margins", transient=True)]
    document = {"duration_s": options.duration, "software": software_versions(), "rows": rows}
    record(options.name, document, table(document))
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
