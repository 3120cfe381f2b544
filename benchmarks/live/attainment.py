"""Attainment over load on vLLM's CPU server: its default, its best static setting, its priorities, and slo-opt.

    python benchmarks/live/attainment.py [--vllm-python .venv-vllm/bin/python] [--quick]

1. search: every static setting serves the same traces at one load; the best median attainment is the one to beat.
2. measure: one server a contender, all up at once, idle while another is measured. Repetition by repetition and load by
   load they replay the same trace, in alternating order. A run during which the machine stalled (the load generator was
   late) is made again, twice at most, whoever was served. A contender that falls below `FLOOR` of a trace of
   `TELLING` requests or more sits out higher loads of the repetition.
3. throughput: nobody has an SLO and everybody comes at once; tokens a second, default against slo-opt.
4. bound, with `--engine`: what any scheduler can attain of the same traces at most, on that model of this engine.

Every run is a line of out/live/attainment.jsonl: run it again to go on after an interruption. Writes
benchmarks/results/live_attainment.json, .md and .png.
"""

import argparse
import json
import os
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slo_opt.analysis.solve import sharpened
from slo_opt.domain.instance import Instance
from slo_opt.solvers.interface import SolverConfig
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.atomic import append_line
from slo_opt.traces.engine_file import read_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from record import RESULTS, record
from servers import DEFAULT, ROOT, SLO_OPT, Contender, Running, Spread, measured, median, priority, running, static
from workload import MIX, live_trace

TARGET = 0.9
BOUND_S = 20.0
ATTEMPTS = 3  # a run in which the machine stalled the load generator is made again
FLOOR = 0.7
TELLING = 20  # of fewer requests, one stall can lose half
STATIC = ((1024, 0), (512, 0), (256, 0), (128, 0), (2048, 128), (512, 128), (256, 128), (512, 64), (256, 64), (128, 64))
LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5)
SEARCH_SEED = 9_000  # traces of the search are not those of the measurement
MEASURE_SEED = 100  # nor are those on which the workload was tried out in the simulator (0 to 4)
Row = dict[str, Any]


def instance_of(load: float, duration_s: float, seed: int) -> Instance:
    """The trace of one repetition at one load."""
    return live_trace(load, duration_s, seed).to_instance()


def burst_of(duration_s: float, seed: int) -> Instance:
    """Everybody at once, and nobody with an SLO."""
    drawn = live_trace(1.0, duration_s, seed, best_effort=True)
    requests = tuple(replace(request, arrival_s=0.0) for request in drawn.requests)
    return replace(drawn, requests=requests).to_instance()


class Runs:
    """The runs on record, and their file.

    Parameters
    ----------
    path : Path
        JSON lines; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def find(self, **key: Any) -> list[Row]:
        """Rows with these fields."""
        return [row for row in self.rows if all(row[name] == value for name, value in key.items())]

    def run(self, server: Running, instance: Instance, key: Row) -> Row:
        """The row of that key: from the file, or measured now."""
        contender = server.contender
        key = {**key, "contender": contender.name, "arguments": list(contender.arguments)}
        known = self.find(**key)
        if known:
            return known[0]
        seed = zlib.crc32(json.dumps([key[name] for name in ("part", "load", "seed")]).encode())
        for attempt in range(ATTEMPTS):  # other prompts each time: the prefix cache must find none
            row = {**key, "attempts": attempt + 1, **measured(server, instance, seed + attempt)}
            if not row["late"]:
                break
        append_line(self.path, json.dumps(row).encode())
        self.rows.append(row)
        share = row["total"]["attainment"]
        shown = f"{row['tokens_per_s']:.0f} tokens/s" if share is None else f"{share:.1%} of {row['total']['offered']}"
        late = " LATE GENERATOR" if row["late"] else ""
        print(
            f"{key['part']} {contender.name:14} load {key['load']:g} seed {key['seed']}: {shown}{late}", file=sys.stderr
        )
        return row


def warm_up(servers: Sequence[Running], options: argparse.Namespace) -> None:
    """Serve a trace that is not recorded: code is loaded, and slo-opt has seen batches and lengths."""
    for server in servers:
        measured(server, instance_of(0.8, options.warm_up, SEARCH_SEED - 1), SEARCH_SEED)


def search(runs: Runs, options: argparse.Namespace) -> Contender:
    """The best static setting at one load."""
    shares: dict[str, list[float]] = {}
    contenders = [static(*setting) for setting in options.static]
    for contender in contenders:
        keys = [
            {"part": "search", "load": options.search_load, "seed": SEARCH_SEED + k} for k in range(options.search_runs)
        ]
        if any(not runs.find(**key, contender=contender.name) for key in keys):
            with running([contender], options.folder, options.vllm_python) as servers:
                warm_up(servers, options)
                for key in keys:
                    runs.run(servers[0], instance_of(key["load"], options.duration, key["seed"]), key)
        found = [row for key in keys for row in runs.find(**key, contender=contender.name)]
        shares[contender.name] = [row["total"]["attainment"] for row in found]
    return max(contenders, key=lambda contender: median(shares[contender.name]))


def orders(contenders: Sequence[Running], count: int) -> Iterator[list[Running]]:
    """Orders of the contenders that let each follow each: rotated, every second one backwards."""
    for number in range(count):
        shift = number // 2 % len(contenders)
        order = [*contenders[shift:], *contenders[:shift]]
        yield order[::-1] if number % 2 else order


def measure(runs: Runs, best: Contender, options: argparse.Namespace) -> list[Contender]:
    """All loads, repetitions and contenders; then throughput without SLOs."""
    contenders = [DEFAULT, best, priority(best), SLO_OPT]
    with running(contenders, options.folder, options.vllm_python) as servers:
        warm_up(servers, options)
        order = orders(servers, 10_000)
        seeds = range(MEASURE_SEED, MEASURE_SEED + options.repetitions)
        for seed in seeds:
            out: set[str] = set()
            for load in options.loads:
                instance = instance_of(load, options.duration, seed)
                for server in next(order):
                    name = server.contender.name
                    if name in out:
                        continue
                    row = runs.run(server, instance, {"part": "measure", "load": load, "seed": seed})
                    if row["total"]["attainment"] < FLOOR and row["total"]["offered"] >= TELLING:
                        out.add(name)
        rivals = [servers[0], servers[-1]]
        for seed, turn in zip(seeds, orders(rivals, len(seeds)), strict=True):
            instance = burst_of(options.duration, seed)
            for server in turn:
                runs.run(server, instance, {"part": "throughput", "load": 0.0, "seed": seed})
    return contenders


def capacity(points: Sequence[tuple[float, float]]) -> float:
    """Load at which attainment falls through `TARGET`, linear between loads; the highest load if it never does."""
    last = (0.0, 1.0)
    for load, share in sorted(points):
        if share < TARGET:
            return last[0] + (load - last[0]) * (last[1] - TARGET) / (last[1] - share)
        last = (load, share)
    return last[0]


def pooled(
    rows: Sequence[Row], loads: Sequence[float], offered: dict[tuple[float, int], int]
) -> list[tuple[float, float]]:
    """Attainment over all traces of a load together; who sat out keeps the share it fell to, which favours it."""
    points = []
    for load in loads:
        attained = count = 0.0
        for seed in sorted({row["seed"] for row in rows}):
            known = [row for row in rows if row["seed"] == seed and row["load"] <= load]
            share = max(known, key=lambda row: row["load"])["total"]["attainment"]
            attained += share * offered[load, seed]
            count += offered[load, seed]
        points.append((load, attained / count))
    return points


def bounds(options: argparse.Namespace) -> Row | None:
    """Proved bounds on the share that any scheduler attains, load by load, on a model of the engine."""
    if options.engine is None:
        return None
    engine = read_engine(options.engine)
    found: Row = {"engine": engine.name, "source": engine.source, "loads": []}
    for load in options.loads:
        shares = []
        for seed in range(MEASURE_SEED, MEASURE_SEED + options.repetitions):
            instance = replace(instance_of(load, options.duration, seed), engine=engine)
            result = schedule_solver("highs").solve(instance, SolverConfig(time_limit_s=BOUND_S))
            offered = sum(instance.value_of(request) > 0 for request in instance.requests)
            dual = result.bounds.dual
            shares.append(1.0 if dual is None else min(1.0, sharpened(dual, instance) / offered))
        found["loads"].append({"load": load, "bound": shares})
        found["versions"] = result.stats.versions
    return found


def document_of(runs: Runs, contenders: Sequence[Contender], options: argparse.Namespace) -> Row:
    """Everything that the tables and the plot show."""
    rate = sum(kind.rate for kind in MIX)
    found: Row = {
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "target": TARGET,
        "requests_per_s_at_load_1": rate,
        "duration_s": options.duration,
        "repetitions": options.repetitions,
        "search": _search_rows(runs, options),
        "contenders": [],
        "bounds": bounds(options),
    }
    offered = {
        (load, seed): len(instance_of(load, options.duration, seed).requests)
        for load in options.loads
        for seed in range(MEASURE_SEED, MEASURE_SEED + options.repetitions)
    }
    for contender in contenders:
        rows = runs.find(part="measure", contender=contender.name, arguments=list(contender.arguments))
        capacities = [
            capacity([(row["load"], row["total"]["attainment"]) for row in rows if row["seed"] == seed])
            for seed in sorted({row["seed"] for row in rows})
        ]
        bursts = runs.find(part="throughput", contender=contender.name, arguments=list(contender.arguments))
        found["contenders"].append(
            {
                "name": contender.name,
                "arguments": list(contender.arguments),
                "capacity": capacities,
                "pooled_capacity": capacity(pooled(rows, options.loads, offered)),
                "loads": [_load_row(load, [row for row in rows if row["load"] == load]) for load in options.loads],
                "tokens_per_s": [row["tokens_per_s"] for row in sorted(bursts, key=lambda row: row["seed"])],
                "late_runs": sum(row["late"] for row in rows),
                "failed_requests": sum(row["num_failed"] for row in rows),
            }
        )
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _search_rows(runs: Runs, options: argparse.Namespace) -> list[Row]:
    rows = []
    for setting in options.static:
        name = static(*setting).name
        shares = [row["total"]["attainment"] for row in runs.find(part="search", contender=name)]
        rows.append({"name": name, "load": options.search_load, "attainment": shares})
    return rows


def _load_row(load: float, rows: Sequence[Row]) -> Row:
    classes = {kind.slo.name: _class_shares(kind.slo.name, rows) for kind in MIX}
    promised = [row["counters"].get("ended_admitted") for row in rows]
    return {
        "load": load,
        "runs": len(rows),
        "offered": [row["total"]["offered"] for row in rows],
        "attained": [row["total"]["attained"] for row in rows],
        "admitted": [None if count is None else int(count) for count in promised],
        "attainment": [row["total"]["attainment"] for row in rows],
        "classes": classes,
        "lateness_p99_ms": [row["lateness_ms"]["p99"] for row in rows],
    }


def _class_shares(name: str, rows: Sequence[Row]) -> list[float]:
    found = (part["attainment"] for row in rows for part in row["classes"] if part["name"] == name)
    return [share for share in found if share is not None]


def table(document: Row) -> str:
    """Markdown."""
    names = [kind.slo.name for kind in MIX]
    rate = document["requests_per_s_at_load_1"]
    base = {row["name"]: row["pooled_capacity"] for row in document["contenders"]}
    default = base[DEFAULT.name]
    lines = [
        f"Load 1 is {rate:g} requests a second. Median [least, most] of {document['repetitions']} traces of "
        f"{document['duration_s']:g} s on {document['machine']['cores']} cores of {document['machine']['cpu']}.",
        "",
        f"| | requests/s at {TARGET:.0%} attained of all traces | ratio to default | trace by trace "
        "| tokens/s, nobody has an SLO | late runs |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["contenders"]:
        reached = Spread([value * rate for value in row["capacity"]]).text("{:.2f}")
        tokens = Spread(row["tokens_per_s"]).text("{:.0f}")
        lines.append(
            f"| {row['name']} | {base[row['name']] * rate:.2f} | {base[row['name']] / default:.2f}x | {reached} "
            f"| {tokens} | {row['late_runs']} |"
        )
    lines += [
        "",
        f"| | load | runs | attained of offered | attained of admitted | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for row in document["contenders"]:
        for at in row["loads"]:
            if not at["runs"]:
                continue
            shares = " | ".join(Spread(at["classes"][name]).text("{:.0%}") for name in names)
            promised = [
                offered if admitted is None else max(admitted, got, 1)
                for admitted, got, offered in zip(at["admitted"], at["attained"], at["offered"], strict=True)
            ]
            of_admitted = [got / among for got, among in zip(at["attained"], promised, strict=True)]
            lines.append(
                f"| {row['name']} | {at['load']:g} | {at['runs']} | {Spread(at['attainment']).text('{:.1%}')} | "
                f"{Spread(of_admitted).text('{:.1%}')} | {shares} |"
            )
    if document["bounds"] is not None:
        for at in document["bounds"]["loads"]:
            share = Spread(at["bound"]).text("{:.1%}")
            lines.append(f"| any scheduler, at most | {at['load']:g} | | {share} | |{' |' * len(names)}")
    lines += [
        "",
        "Admitted by slo-opt's own count at the end of each request, what it had declined and was on time all the same "
        "included; the others admit everybody. A contender sits out loads above the first at which it attains less "
        f"than {FLOOR:.0%}.",
        *_about_bounds(document["bounds"]),
        "",
        f"| static setting, load {document['search'][0]['load']:g} | attained |",
        "|---|---|",
        *(f"| {row['name']} | {Spread(row['attainment']).text('{:.1%}')} |" for row in document["search"]),
    ]
    return "\n".join(lines) + "\n"


def _about_bounds(found: Row | None) -> list[str]:
    if found is None:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        f"The last rows are proved on a model of the engine, {found['source']}, which has no tail of slow batches "
        f"({versions})."
    ]


def draw(document: Row, path: Path) -> None:
    """Attainment over load, all requests and class by class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ["all", *(kind.slo.name for kind in MIX)]
    rate = document["requests_per_s_at_load_1"]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.4), sharey=True, layout="constrained")
    enough = document["repetitions"] / 2
    for axis, name in zip(axes, names, strict=True):
        for k, row in enumerate(document["contenders"]):
            points = [
                (at["load"] * rate, at["attainment"] if name == "all" else at["classes"][name])
                for at in row["loads"]
                if at["runs"] > enough
            ]
            middle = [median(shares) for _, shares in points]
            spread = [
                [at - min(shares) for at, (_, shares) in zip(middle, points, strict=True)],
                [max(shares) - at for at, (_, shares) in zip(middle, points, strict=True)],
            ]
            loads = [load + 0.06 * (k - 1.5) for load, _ in points]  # side by side
            axis.errorbar(loads, middle, spread, marker="o", ms=3, elinewidth=0.8, capsize=2, label=row["name"])
        if name == "all" and document["bounds"] is not None:
            rows = document["bounds"]["loads"]
            shares = [median(at["bound"]) for at in rows]
            axis.plot([at["load"] * rate for at in rows], shares, color="0.4", ls="--", label="bound, any scheduler")
        axis.axhline(TARGET, color="0.6", lw=0.8, ls=":")
        axis.set(title=name, xlabel="requests a second, all classes", ylim=(0, 1.02))
    axes[0].set_ylabel("attained of offered")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="has vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "live", help="of model, logs and runs")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals a run")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--static", default=",".join(f"{a}/{b}" for a, b in STATIC), help="budget/threshold, ...")
    parser.add_argument("--search-load", type=float, default=0.7)
    parser.add_argument("--search-runs", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds of unrecorded arrivals a server")
    parser.add_argument(
        "--engine", type=Path, help="engine file fitted here, by simulator_match.py or slo-opt calibrate"
    )
    parser.add_argument("--name", default="live_attainment", help="of the results; empty prints and writes nothing")
    parser.add_argument("--quick", action="store_true", help="one short run of everything, nothing kept: does it work?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.duration, options.repetitions, options.loads, options.static = 4.0, 1, "0.5", "256/64"
        options.search_runs, options.warm_up, options.name = 1, 2.0, ""
        options.folder = options.folder / "quick"
    options.loads = sorted(map(float, options.loads.split(",")))
    options.static = [tuple(map(int, pair.split("/"))) for pair in options.static.split(",")]
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.quick:
        (options.folder / "attainment.jsonl").unlink(missing_ok=True)
    return options


def main() -> int:
    """Run and report."""
    options = options_of()
    runs = Runs(options.folder / "attainment.jsonl")
    best = search(runs, options)
    document = document_of(runs, measure(runs, best, options), options)
    text = table(document)
    draw(document, options.folder / "attainment.png")
    record(options.name, document, text)
    if options.name:
        draw(document, RESULTS / f"{options.name}.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
