"""Attainment over load of two live replicas: round-robin and other routing policies against slo-opt's.

    python benchmarks/live/fleet_attainment.py [--parts route,ray] [--vllm-python ...] [--ray-python ...] [--quick]

Parts:

- `route`: two vLLM servers scheduled by slo-opt, and a `slo-opt route` for each policy in front of them, one used at a
  time.
- `route-default`: the same with vLLM's own scheduler in the servers.
- `ray`, `ray-default`: a `slo-opt ray` for each of two policies, with two replicas of its own each.

First the engine model that policies predict with is fitted to batches of such a fleet, under traffic of other seeds.
Then, repetition by repetition and load by load, all policies of a part serve the same trace, in alternating order. A
run during which the machine stalled (the load generator was late) is made again, twice at most, whoever was served.

Every run is a line of out/live/fleet/attainment.jsonl: run it again to go on after an interruption, or for further
parts at loads of their own; `--parts ""` with all loads reports on all. Writes
benchmarks/results/live_fleet_attainment.json, .md and .png. Each replica wants a core: it computes and schedules in one
process, which gives way to clients, router and HTTP.

With `--simulate` nothing is started: the simulator serves traces of other seeds, on the fitted engine; so were limits
and mix chosen.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.engine_bridge.engine_fit import fit_engine
from slo_opt.engine_bridge.step_log import read_steps
from slo_opt.routing.interface import Role
from slo_opt.simulate.fleet_spec import FleetOptions
from slo_opt.simulate.metrics import run_metrics
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.play_fleet import play_fleet
from slo_opt.traces.engine_file import encode_engine, read_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from attainment import FLOOR, TARGET, TELLING, Row, Runs, capacity, orders, pooled
from fleets import FLEET_CONFIG, FLEET_MIX, REPLICAS, Fleet, fleet_trace, ray_fleets, replicas, routers
from record import RESULTS, record
from servers import DEFAULT, ROOT, SLO_OPT, Spread, measured
from workload import ENGINE

PARTS = {
    "route": "slo-opt route, slo-opt's scheduler in the replicas",
    "route-default": "slo-opt route, vLLM's scheduler in the replicas",
    "ray": "slo-opt ray, slo-opt's scheduler in the replicas",
    "ray-default": "slo-opt ray, vLLM's scheduler in the replicas",
}
POLICIES = ("round-robin", "join-shortest-queue", "polyserve", "slos-serve", "slo-opt")
RAY_POLICIES = ("round-robin", "slo-opt")
BASE, OURS = "round-robin", "slo-opt"
GOAL = 1.2
LOADS = (0.3, 0.6, 0.9, 1.2)
FIT_LOADS = (0.5, 1.0, 1.5)
WARM_LOAD = 0.8
WARM_SEED = 9_000
MEASURE_SEED = 330  # limits and mix were chosen in the simulator, on seeds 0 to 11
SIMULATED_NOISE = 0.2  # of each batch, about the median error of a fitted model over what is normal for a median


def ours(part: str) -> bool:
    """Whether slo-opt's scheduler is in the replicas of a part; otherwise vLLM's."""
    return not part.endswith("-default")


def instance_of(load: float, duration_s: float, seed: int, engine: EngineModel = ENGINE) -> Instance:
    """The trace of one repetition at one load; the engine says what a slowdown is."""
    return replace(fleet_trace(load, duration_s, seed).to_instance(), engine=engine)


def fitted(options: argparse.Namespace) -> EngineModel:
    """The engine model: the one given, the one on record, or one fitted now."""
    if options.engine.exists():
        return read_engine(options.engine)
    logs = [options.folder / f"steps-{number}.jsonl" for number in range(REPLICAS)]
    configs = []
    for log in logs:
        log.unlink(missing_ok=True)
        configs.append(log.with_suffix(".toml"))
        configs[-1].write_text(f'step_log = "{log.resolve()}"\n\n{FLEET_CONFIG.read_text()}')
    guess = options.folder / "guess.json"  # what a slowdown is, until it is known
    guess.write_bytes(encode_engine(ENGINE))
    with (
        replicas(options.folder, options.vllm_python, SLO_OPT, configs) as behind,
        routers([BASE], behind, options.folder, guess) as (fleet,),
    ):
        for load in FIT_LOADS:
            measured(fleet, instance_of(load, options.warm_up, WARM_SEED + 1), WARM_SEED)
    records = [read_steps(log) for log in logs]
    samples = [sample for record in records for sample in record.samples]
    fit = fit_engine(samples, records[0].engine or ENGINE, name="fitted")
    options.engine.write_bytes(encode_engine(fit.engine))
    print(f"engine: {fit.engine.source}", file=sys.stderr, flush=True)
    return fit.engine


@contextmanager
def fleets_of(part: str, engine: EngineModel, options: argparse.Namespace) -> Iterator[list[Fleet]]:
    """All contenders of a part, up and warm."""
    with ExitStack() as stack:
        if part.startswith("ray"):
            found = stack.enter_context(
                ray_fleets(RAY_POLICIES, options.folder, options.ray_python, options.engine, ours=ours(part))
            )
        else:
            scheduler = SLO_OPT if ours(part) else DEFAULT
            behind = stack.enter_context(replicas(options.folder, options.vllm_python, scheduler))
            found = stack.enter_context(routers(options.policies, behind, options.folder, options.engine))
        for fleet in found:  # not recorded: code is loaded, schedulers and routers have seen batches and lengths
            measured(fleet, instance_of(WARM_LOAD, options.warm_up, WARM_SEED, engine), WARM_SEED)
        yield found


def measure(runs: Runs, part: str, fleets: Sequence[Fleet], engine: EngineModel, options: argparse.Namespace) -> None:
    """All loads, repetitions and contenders of a part."""
    order = orders(fleets, 10_000)
    for seed in seeds_of(options):
        out: set[str] = set()
        for load in options.loads:
            instance = instance_of(load, options.duration, seed, engine)
            for fleet in next(order):
                name = fleet.contender.name
                if name in out:
                    continue
                row = runs.run(fleet, instance, {"part": part, "load": load, "seed": seed})
                if row["total"]["attainment"] < FLOOR and row["total"]["offered"] >= TELLING:
                    out.add(name)


def seeds_of(options: argparse.Namespace) -> range:
    """One for each repetition."""
    return range(MEASURE_SEED, MEASURE_SEED + options.repetitions)


def cpu_name() -> str:
    """Of this machine, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def document_of(runs: Runs, options: argparse.Namespace) -> Row:
    """Everything that the tables and the plot show."""
    seeds = seeds_of(options)
    offered = {
        (load, seed): len(instance_of(load, options.duration, seed).requests)
        for load in options.loads
        for seed in seeds
    }
    found: Row = {
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "target": TARGET,
        "goal": GOAL,
        "requests_per_s_at_load_1": sum(kind.rate for kind in FLEET_MIX),
        "duration_s": options.duration,
        "repetitions": options.repetitions,
        "engine": read_engine(options.engine).source if options.engine.exists() else None,
        "parts": [],
    }
    for part, title in PARTS.items():
        of_part = [row for row in runs.find(part=part) if row["seed"] in seeds and row["load"] in options.loads]
        loads = sorted({row["load"] for row in of_part})
        contenders = []
        for name in POLICIES:
            rows = [row for row in of_part if row["contender"] == name]
            if {row["seed"] for row in rows} == set(seeds):
                contenders.append(_contender(name, rows, loads, offered))
        if contenders:
            found["parts"].append({"name": part, "title": title, "contenders": contenders})
    return found


def _contender(name: str, rows: list[Row], loads: Sequence[float], offered: dict[tuple[float, int], int]) -> Row:
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append((row["load"], row["total"]["attainment"]))
    return {
        "name": name,
        "capacity": capacity(pooled(rows, loads, offered)),
        "capacity_by_trace": [capacity(points) for _, points in sorted(by_seed.items())],
        "loads": [_load_row(load, [row for row in rows if row["load"] == load]) for load in loads],
        "late_runs": sum(row["late"] for row in rows),
        "failed_requests": sum(row["num_failed"] for row in rows),
    }


def _load_row(load: float, rows: Sequence[Row]) -> Row:
    classes = {}
    for kind in FLEET_MIX:
        parts = [part for row in rows for part in row["classes"] if part["name"] == kind.slo.name]
        classes[kind.slo.name] = _share(parts)
    return {
        "load": load,
        "runs": len(rows),
        "offered": sum(row["total"]["offered"] for row in rows),
        "attained": sum(row["total"]["attained"] for row in rows),
        "all": _share([row["total"] for row in rows]),
        "classes": classes,
        "by_trace": [row["total"]["attainment"] for row in rows],
        "lateness_p99_ms": [row["lateness_ms"]["p99"] for row in rows],
    }


def _share(counts: Sequence[Row]) -> float | None:
    """Attained of offered, all traces together; None of nobody."""
    offered = sum(count["offered"] for count in counts)
    return sum(count["attained"] for count in counts) / offered if offered else None


def table(document: Row) -> str:
    """Markdown."""
    names = [kind.slo.name for kind in FLEET_MIX]
    rate = document["requests_per_s_at_load_1"]
    lines = [
        f"Load 1 is {rate:g} requests a second. {document['repetitions']} traces of {document['duration_s']:g} s a "
        f"load on {document['machine']['cores']} cores of {document['machine']['cpu']}. Routing predicts with a model "
        f"of the engine, {document['engine']}.",
        "",
        f"| | requests/s at {TARGET:.0%} attained of all traces | ratio to {BASE} | trace by trace | late runs "
        "| failed requests |",
        "|---|---|---|---|---|---|",
    ]
    for part in document["parts"]:
        lines.append(f"| **{part['title']}** | | | | | |")
        base = next((row["capacity"] for row in part["contenders"] if row["name"] == BASE), None)
        for row in part["contenders"]:
            reached = Spread([value * rate for value in row["capacity_by_trace"]]).text("{:.2f}")
            ratio = f"{row['capacity'] / base:.2f}x" if base else "-"
            lines.append(
                f"| {row['name']} | {row['capacity'] * rate:.2f} | {ratio} | {reached} | {row['late_runs']} "
                f"| {row['failed_requests']} |"
            )
    lines += [
        "",
        f"| | load | runs | offered | attained | trace by trace | {' | '.join(names)} |",
        f"|---|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for part in document["parts"]:
        lines.append(f"| **{part['title']}** | | | | | |{' |' * len(names)}")
        for row in part["contenders"]:
            for at in row["loads"]:
                if at["runs"]:
                    shares = " | ".join(
                        "-" if at["classes"][name] is None else f"{at['classes'][name]:.0%}" for name in names
                    )
                    lines.append(
                        f"| {row['name']} | {at['load']:g} | {at['runs']} | {at['offered']} | {at['all']:.1%} "
                        f"| {Spread(at['by_trace']).text('{:.0%}')} | {shares} |"
                    )
    lines += [
        "",
        f"Trace by trace: median [least, most]. A contender sits out loads above the first at which it attains less "
        f"than {FLOOR:.0%} of a trace; in the capacity it keeps that share.",
    ]
    return "\n".join(lines) + "\n"


def draw(document: Row, path: Path) -> None:
    """Attainment over load, a panel for each part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = document["parts"]
    rate = document["requests_per_s_at_load_1"]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(4.6 * len(parts), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, part in zip(axes[0], parts, strict=True):
        for k, row in enumerate(part["contenders"]):
            points = [at for at in row["loads"] if at["runs"] > document["repetitions"] / 2]
            shares = [at["all"] for at in points]
            spread = [
                [share - min(at["by_trace"]) for share, at in zip(shares, points, strict=True)],
                [max(at["by_trace"]) - share for share, at in zip(shares, points, strict=True)],
            ]
            middle = (len(part["contenders"]) - 1) / 2
            loads = [at["load"] * rate + 0.06 * (k - middle) for at in points]  # side by side
            axis.errorbar(
                loads, shares, spread, color=f"C{POLICIES.index(row['name'])}", marker="o", ms=3, elinewidth=0.8,
                capsize=2, label=row["name"],
            )  # fmt: skip
            if row["name"] == BASE:
                goal = GOAL * row["capacity"] * rate
                axis.axvline(goal, color="0.4", lw=0.8, ls="--", label=f"goal: {GOAL:g} x {BASE}")
        axis.axhline(TARGET, color="0.6", lw=0.8, ls=":")
        axis.set(title=part["title"], xlabel="requests a second", ylim=(0, 1.02))
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("attained of offered, all traces of a load")
    most = max(range(len(parts)), key=lambda k: len(parts[k]["contenders"]))
    axes[0][most].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)


def simulate(options: argparse.Namespace) -> None:
    """Print what each policy attains in the simulator."""
    engine = read_engine(options.engine)
    for part, policy in [(part, policy) for part in options.parts for policy in options.policies]:
        points = []
        for load in options.loads:
            attained = offered = 0
            for seed in range(options.repetitions):
                instance = instance_of(load, options.duration, seed, engine)
                run = play_fleet(
                    instance,
                    [(engine, Role.BOTH)] * REPLICAS,
                    policy,
                    "slo-opt" if ours(part) else "vllm-fcfs",
                    options=FleetOptions(SimulationOptions(seed=seed, noise=SIMULATED_NOISE)),
                )
                total = run_metrics(run).total
                attained += total.attained
                offered += total.offered
            points.append((load, attained / offered))
        shares = ", ".join(f"{load:g}: {share:.1%}" for load, share in points)
        print(f"{part}, {policy}: {capacity(points):.2f} ({shares})", flush=True)


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="route", help=f"of {', '.join(PARTS)}; empty: only report what is on record")
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="has vLLM")
    parser.add_argument("--ray-python", default=str(ROOT / ".venv-ray" / "bin" / "python"), help="has Ray and vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "live" / "fleet", help="of model, logs and runs")
    parser.add_argument("--duration", type=float, default=15.0, help="seconds of arrivals a run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--policies", default=",".join(POLICIES), help="of the parts without Ray")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds of unrecorded arrivals")
    parser.add_argument("--engine", type=Path, help="engine file for predictions; default: fitted at the first run")
    parser.add_argument("--name", default="live_fleet_attainment", help="of the results; empty writes nothing")
    parser.add_argument("--simulate", action="store_true", help="simulate instead, on seeds from 0")
    parser.add_argument("--quick", action="store_true", help="one short run of everything, nothing kept: does it work?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.duration, options.repetitions, options.loads = 4.0, 1, "0.5"
        options.warm_up, options.name = 4.0, ""
        options.folder = options.folder / "quick"
    options.loads = sorted(map(float, options.loads.split(",")))
    options.parts = [part for part in options.parts.split(",") if part]
    options.policies = options.policies.split(",")
    for names, known in ((options.parts, PARTS), (options.policies, POLICIES)):
        if unknown := set(names) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    options.engine = options.engine or options.folder / "engine.json"
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.quick:
        (options.folder / "attainment.jsonl").unlink(missing_ok=True)
    return options


def main() -> int:
    """Run and report."""
    options = options_of()
    if options.simulate:
        simulate(options)
        return 0
    runs = Runs(options.folder / "attainment.jsonl")
    for part in options.parts:
        engine = fitted(options)
        with fleets_of(part, engine, options) as fleets:
            measure(runs, part, fleets, engine, options)
    document = document_of(runs, options)
    text = table(document)
    draw(document, options.folder / "attainment.png")
    record(options.name, document, text)
    if options.name:
        draw(document, RESULTS / f"{options.name}.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
