"""What each part of the two planning policies is worth: capacity without it, as a share of the capacity with it.

    python benchmarks/ablations.py --data ../shared/data

Each variant is a setting of `slo-opt` or `slos-serve`; capacity as in benchmarks/capacity_table.py, one seed. The
speculative rows run on an engine with a draft model at an acceptance of 0.7. Writes benchmarks/results/ablations.json
and .md after every variant, and goes on where it stopped.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, record

from slo_opt.domain.engines import engine_named
from slo_opt.policies.registry import POLICIES, PolicyEntry
from slo_opt.simulate.capacity import CapacityOptions, find_capacity
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.workload import Workload

SCENARIOS = ("chatbot", "coder", "mixed", "reasoning")
ENGINE = "llama-3-8b-a100"
DRAFT_ENGINE, ACCEPTANCE = "opt-6.7b-a100-draft", 0.7

# policy, what is left out, setting, lengths, drafts
VARIANTS: tuple[tuple[str, str, dict[str, Any], str, bool], ...] = (
    ("slo-opt", "nothing", {}, "quantile", False),
    ("slo-opt", "the DP: greedy admission by deadline", {"greedy": True}, "quantile", False),
    ("slo-opt", "giving up what has begun", {"give_up": False}, "quantile", False),
    ("slo-opt", "bid prices", {"window_s": 0.0}, "quantile", False),
    ("slo-opt", "sitting out with a lead", {"lead_s": 1e9}, "quantile", False),
    ("slo-opt", "short batches: cap at the median slack", {"cap_quantile": 0.5}, "quantile", False),
    ("slo-opt", "best effort (declined ones wait for an idle engine)", {"best_effort": False}, "quantile", False),
    ("slo-opt", "nothing, but lengths are known", {}, "oracle", False),
    ("slo-opt", "all knowledge of lengths", {}, "none", False),
    ("slos-serve", "nothing", {}, "quantile", False),
    ("slos-serve", "the DP: greedy admission by deadline", {"greedy": True}, "quantile", False),
    ("slos-serve", "dynamic batch sizes: 512 tokens", {"dynamic": False}, "quantile", False),
    ("slos-serve", "the burst tier: declined ones leave", {"best_effort": False}, "quantile", False),
    ("slo-opt", "nothing", {}, "quantile", True),
    ("slo-opt", "speculation", {"speculate": False}, "quantile", True),
    ("slos-serve", "nothing", {}, "quantile", True),
    ("slos-serve", "speculation", {"speculate": False}, "quantile", True),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a variant; in brackets the share of the whole policy's capacity."""
    lines = [
        f"| policy | engine | without | {' | '.join(SCENARIOS)} | geometric mean |",
        f"|---|---|---|{'---|' * (len(SCENARIOS) + 1)}",
    ]
    whole: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        key = (row["policy"], row["engine"])
        whole.setdefault(key, row["rates"])
        shares = {name: rate / whole[key][name] for name, rate in row["rates"].items() if whole[key][name] > 0}
        cells = [f"{rate:.3g} ({shares.get(name, math.nan):.2f})" for name, rate in row["rates"].items()]
        positive = [share for share in shares.values() if share > 0]
        mean = math.exp(sum(map(math.log, positive)) / len(positive)) if len(positive) == len(SCENARIOS) else 0.0
        lines.append(f"| {row['policy']} | {row['engine']} | {row['without']} | {' | '.join(cells)} | {mean:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published traces; without it they are generated")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    kept = RESULTS / "ablations.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() and not options.fresh else []
    done = {(row["policy"], row["engine"], row["without"]) for row in rows}
    began_s = time.perf_counter()
    for policy, without, setting, lengths, drafts in VARIANTS:
        engine = DRAFT_ENGINE if drafts else ENGINE
        if (policy, engine, without) in done:
            continue
        whole = POLICIES[policy]
        name = f"{policy} without {without}"
        POLICIES[name] = PolicyEntry(name, whole.summary, whole.factory, ({**whole.settings[0], **setting},))
        simulation = SimulationOptions(acceptance=ACCEPTANCE if drafts else 0.0)
        rates = {
            scenario: find_capacity(
                Workload(scenario, engine_named(engine), 1.0, 300.0, 0, options.data),
                name,
                CapacityOptions(lengths=lengths, simulation=simulation),
            ).rate
            for scenario in SCENARIOS
        }
        rows.append({"policy": policy, "engine": engine, "without": without, "setting": setting, "rates": rates})
        print(f"{time.perf_counter() - began_s:6.0f} s  {name}, {engine}", file=sys.stderr, flush=True)
        record("ablations", rows, table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
