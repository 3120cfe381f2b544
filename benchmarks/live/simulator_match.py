"""The simulator beside the live CPU server: the same traces, the same policies, the engine model fitted to its batches.

    python benchmarks/live/simulator_match.py [--vllm-python .venv-vllm/bin/python] [--quick]

1. A server scheduled by slo-opt serves traces of several loads and logs its batches; the engine model is fitted to
   them. What a request costs outside of batches (HTTP, tokens on their way) is measured with lone requests.
2. vLLM's default server and slo-opt's serve further traces, in alternating order.
3. The simulator serves the same traces under `vllm-fcfs` and `slo-opt`, on that model.

Live runs are lines of out/live/match/simulator_match.jsonl: run it again to go on after an interruption. Writes
benchmarks/results/live_simulator_match.json and .md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.engine_bridge.engine_fit import EngineFit, fit_engine
from slo_opt.engine_bridge.step_log import read_steps
from slo_opt.policies.interface import RoundEnd
from slo_opt.policies.lengths import QuantileLengths
from slo_opt.policies.registry import PolicyContext, make_policy, prepare
from slo_opt.simulate.metrics import run_metrics
from slo_opt.simulate.simulator import SimulationOptions, simulate
from slo_opt.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from attainment import Row, Runs, instance_of
from record import record
from servers import CONFIG, DEFAULT, ROOT, SLO_OPT, Running, measured, median, running
from workload import live_trace

POLICIES = {DEFAULT.name: "vllm-fcfs", SLO_OPT.name: "slo-opt"}
FIT_SEED, WARM_SEED, LONE_SEED = 7_000, 7_100, 7_200
FIT_LOADS = (0.5, 1.0, 1.5, 2.0)
LONE = 30
ROBUST = 1.4826  # a standard deviation from a median error, if errors are normal


def lone_requests() -> Instance:
    """Requests so far apart that none meets another."""
    few = live_trace(1.0, 30.0, LONE_SEED)
    stage = Stage(16, 8, "chat")
    requests = tuple(Request(f"lone{i}", 0.5 * i, (stage,)) for i in range(LONE))
    return Trace("lone", requests, few.slo_classes, few.engine).to_instance()


def outside_s(server: Running, engine: EngineModel) -> float:
    """Seconds from sending to the first token that no batch accounts for: median over lone requests."""
    row = measured(server, lone_requests(), LONE_SEED)
    (chat,) = (part for part in row["classes"] if part["name"] == "chat")
    return max(chat["ttft_ms"]["p50"] / 1e3 - engine.zero_load_ttft_s(16), 0.0)


def configuration(folder: Path) -> Path:
    """The configuration of the live benchmarks, with a log of all batches."""
    path = folder / "match.toml"
    path.write_text(f'step_log = "{folder.resolve() / "steps.jsonl"}"\n\n{CONFIG.read_text()}')
    return path


def observe(server: Running, options: argparse.Namespace) -> None:
    """Serve traces of several loads for the step log."""
    for load in options.fit_loads:
        measured(server, instance_of(load, options.duration, FIT_SEED), FIT_SEED + round(100 * load))


def live(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """All runs on servers; the fit, as it is kept beside them."""
    kept = options.folder / "fit.json"
    keys = [
        {"part": "match", "load": load, "seed": seed} for load in options.loads for seed in range(options.repetitions)
    ]
    names = [DEFAULT.name, SLO_OPT.name]
    if kept.exists() and all(runs.find(**key, contender=name) for key in keys for name in names):
        return json.loads(kept.read_text())
    (options.folder / "steps.jsonl").unlink(missing_ok=True)
    path = configuration(options.folder)
    with running([SLO_OPT], options.folder, options.vllm_python, config=path) as (server,):
        observe(server, options)
    records = read_steps(options.folder / "steps.jsonl")
    fit = fit_engine(records.samples, records.engine or live_trace(1.0, 30.0, 0).engine_model(), name="fitted")
    with running([DEFAULT, SLO_OPT], options.folder, options.vllm_python) as servers:
        for server in servers:
            measured(server, instance_of(0.8, options.duration, WARM_SEED), WARM_SEED)
        outside = [outside_s(server, fit.engine) for server in servers]
        for number, key in enumerate(keys):
            for server in servers if number % 2 else servers[::-1]:
                runs.run(server, instance_of(key["load"], options.duration, key["seed"]), key)
    document = fit_document(fit, dict(zip(names, outside, strict=True)))
    kept.write_text(json.dumps(document, indent=1) + "\n")
    return document


def fit_document(fit: EngineFit, outside: dict[str, float]) -> dict[str, Any]:
    """What the simulations need, as JSON."""
    from dataclasses import asdict

    return {
        "engine": asdict(fit.engine),
        "r2": fit.r2,
        "median_error": fit.median_error,
        "p95_ratio": fit.p95_ratio,
        "num_samples": fit.num_samples,
        "outside_s": outside,
    }


def engine_of(document: dict[str, Any]) -> EngineModel:
    """The fitted engine."""
    from slo_opt.domain.engine import RooflinePiece

    fields = dict(document["engine"])
    pieces = tuple(RooflinePiece(**piece) for piece in fields.pop("pieces"))
    return EngineModel(pieces=pieces, **fields)


def simulated(policy: str, load: float, seed: int, options: argparse.Namespace, fit: dict[str, Any], name: str) -> Row:
    """The same run in the simulator: first tokens are due earlier by what is spent outside of batches."""
    engine, outside = engine_of(fit), fit["outside_s"][name]
    drawn = instance_of(load, options.duration, seed)
    classes = {
        slo.name: replace(slo, ttft_ms=max(slo.ttft_ms - 1e3 * outside, 1.0)) if slo.ttft_ms else slo
        for slo in drawn.slo_classes.values()
    }
    instance = replace(drawn, engine=engine, slo_classes=classes)
    lengths = QuantileLengths()
    for request in instance_of(0.8, options.duration, WARM_SEED).requests:
        slo = request.stages[0].slo
        lengths.observe(RoundEnd(request.id, slo, request.output_tokens, False))
    chosen = make_policy(policy, PolicyContext(engine, instance.slo_classes, lengths))
    noise = ROBUST * fit["median_error"]
    metrics = run_metrics(simulate(instance, chosen, SimulationOptions(seed=seed, noise=noise))).to_dict()
    for part in (metrics["total"], *metrics["classes"]):
        for quantile in ("p50", "p90", "p99"):
            if part["ttft_ms"][quantile] is not None:
                part["ttft_ms"][quantile] += 1e3 * outside
    return metrics


def compare(runs: Runs, fit: dict[str, Any], options: argparse.Namespace) -> list[Row]:
    """Live beside simulated, by contender and load."""
    rows = []
    for name, policy in POLICIES.items():
        for load in options.loads:
            found = sorted(runs.find(part="match", contender=name, load=load), key=lambda row: row["seed"])
            played = [simulated(policy, load, row["seed"], options, fit, name) for row in found]
            row: Row = {
                "contender": name,
                "policy": policy,
                "load": load,
                "runs": len(found),
                "live": {},
                "simulated": {},
            }
            for side, results in (("live", found), ("simulated", played)):
                row[side] = figures(results)
            rows.append(row)
    return rows


def figures(results: Sequence[Row]) -> dict[str, Any]:
    """Attainment over all runs, and medians of their percentiles, by class."""
    out = {}
    for name in ("all", "code", "chat", "agent"):
        parts = [
            part
            for row in results
            for part in ([row["total"]] if name == "all" else row["classes"])
            if part["name"] == name
        ]
        offered = sum(part["offered"] for part in parts)
        out[name] = {
            "offered": offered,
            "attainment": sum(part["attained"] for part in parts) / offered if offered else None,
            **{
                f"{kind}_{quantile}": _middle([part[f"{kind}_ms"][quantile] for part in parts])
                for kind in ("ttft", "tpot")
                for quantile in ("p50", "p90")
            },
        }
    return out


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def table(rows: Sequence[Row], fit: dict[str, Any]) -> str:
    """Markdown."""
    outside = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in fit["outside_s"].items())
    lines = [
        f"Engine model fitted to {fit['num_samples']} batches: R² {fit['r2']:.3f}, median error "
        f"{fit['median_error']:.1%}. Outside of batches: {outside}.",
        "",
        "| | load | class | attained, live | simulated | points | TTFT p50 | p90 | TPOT p50 | p90 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, live_figures in row["live"].items():
            played = row["simulated"][name]
            if not live_figures["offered"]:
                continue
            points = 100 * (played["attainment"] - live_figures["attainment"])
            times = " | ".join(
                _beside(live_figures[key], played[key]) for key in ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90")
            )
            lines.append(
                f"| {row['contender']} | {row['load']:g} | {name} | {live_figures['attainment']:.1%} | "
                f"{played['attainment']:.1%} | {points:+.1f} | {times} |"
            )
    return "\n".join([*lines, "", "Times in ms: live, simulated, difference.", ""])


def _beside(live_ms: float | None, played_ms: float | None) -> str:
    if not live_ms or played_ms is None:
        return "-"
    return f"{live_ms:.1f}, {played_ms:.1f}, {played_ms / live_ms - 1:+.0%}"


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="has vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "live" / "match", help="of model, logs and runs")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals a run")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--loads", default="0.4,0.8,1.3")
    parser.add_argument("--name", default="live_simulator_match", help="of the results; empty writes nothing")
    parser.add_argument("--quick", action="store_true", help="one short run of everything, nothing kept: does it work?")
    options = parser.parse_args()
    options.fit_loads = FIT_LOADS
    if options.quick:
        options.duration, options.repetitions, options.loads, options.name = 6.0, 1, "0.6", ""
        options.folder, options.fit_loads = options.folder / "quick", (1.0,)
    options.loads = sorted(map(float, options.loads.split(",")))
    options.folder.mkdir(parents=True, exist_ok=True)
    measured_runs = options.folder / "simulator_match.jsonl"
    if options.quick:
        measured_runs.unlink(missing_ok=True)
    runs = Runs(measured_runs)
    fit = live(runs, options)
    prepare(POLICIES.values())
    rows = compare(runs, fit, options)
    text = table(rows, fit)
    record(options.name, {"fit": fit, "rows": rows}, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
