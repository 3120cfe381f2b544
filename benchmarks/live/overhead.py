"""What the planner costs a step, beside what vLLM's own `schedule()` costs, in one process and without a model.

    .venv-vllm/bin/python benchmarks/live/overhead.py [--quick]

vLLM's scheduler class serves fabricated requests twice: by itself, and with slo-opt in it. As many run and wait as the
cell says: whenever one ends, another comes. Batches take what an engine model says, on a clock of their own; what the
code takes is measured. The two take turns, a few steps each. Writes benchmarks/results/live_overhead.json and .md.
"""

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engine_bridge"))

RUNNING, WAITING = (10, 100, 500), (0, 100, 1000)
ENGINE = "llama-3-8b-h100"
TURN_STEPS = 25
TENANCY_STEPS = 5  # on average somebody ends, and somebody comes, every so many steps


class Clock:
    """A clock that the engine model moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Side:
    """One scheduler with its requests, and the times of its code.

    Parameters
    ----------
    folder : Path
        Of the model's configuration.
    running, waiting : int
        Requests to keep.
    ours : bool
        With slo-opt.
    """

    def __init__(self, folder: Path, running: int, waiting: int, ours: bool) -> None:
        from harness import EngineSettings, Harness

        from slo_opt.domain.engines import engine_named
        from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
        from slo_opt.engine_bridge.scheduler import slo_scheduler

        self.running, self.waiting, self.ours = running, waiting, ours
        self.clock, self.engine = Clock(), engine_named(ENGINE)
        settings = EngineSettings(
            kv_blocks=running * 256 + 4096,
            max_num_batched_tokens=8192,
            max_num_seqs=running,
            max_model_len=8192,
            log_stats=True,
        )
        classes = {"chat": LiveClass("chat", ttft_ms=1000, tpot_ms=50)}
        config = BridgeConfig(engine=ENGINE, classes=classes, planner_limit_ms=1000)

        def steer(base: type) -> Any:
            return partial(slo_scheduler(base), slo_opt_config=config, slo_opt_clock=self.clock) if ours else base

        self.harness = Harness(folder, settings, steer)
        self.times: dict[str, list[float]] = {"schedule": [], "update": [], "planner": []}
        self.busy: dict[str, list[float]] = {name: [] for name in self.times}
        self.held: list[tuple[int, int]] = []
        self._rng = random.Random(1)
        self._come = 0
        scheduler = self.harness.scheduler
        scheduler.schedule = self._timed("schedule", scheduler.schedule)
        scheduler.update_from_output = self._timed("update", scheduler.update_from_output)
        if ours:
            scheduler.next_plan = self._timed("planner", self._counted(scheduler.next_plan))
        self.unplanned = 0
        self._fill()

    def _timed(self, name: str, call: Any) -> Any:
        def timed(*args: Any, **keywords: Any) -> Any:
            began_s, busy_s = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **keywords)
            finally:
                self.busy[name].append(time.thread_time() - busy_s)
                self.times[name].append(time.perf_counter() - began_s)

        return timed

    def _counted(self, call: Any) -> Any:
        def counted() -> Any:
            plan = call()
            self.unplanned += plan is None
            return plan

        return counted

    def _fill(self) -> None:
        """Let requests come until as many are there as should be."""
        while len(self.harness.scheduler.requests) < self.running + self.waiting:
            prompt = round(10 ** self._rng.uniform(1.5, 3.3))
            output = self._rng.randint(1, 2 * TENANCY_STEPS * self.running)
            fields = {"slo_ttft_ms": self._rng.choice([1e3, 1e4, 6e4]), "slo_tpot_ms": self._rng.choice([30, 50, 100])}
            self.harness.add(f"r{self._come}", prompt, min(output, 4000), arrival_s=self.clock(), extra_args=fields)
            self._come += 1

    def step(self) -> None:
        """One batch."""
        output = self.harness.step()
        self.clock.now_s += self.engine.batch_time_s(
            output.total_num_scheduled_tokens, num_requests=len(output.num_scheduled_tokens)
        )
        self.held.append((len(self.harness.scheduler.running), len(self.harness.scheduler.waiting)))
        self._fill()

    def forget(self) -> None:
        """Drop the times measured so far."""
        for times in (*self.times.values(), *self.busy.values()):
            times.clear()
        self.held.clear()
        self.unplanned = 0


def cell(running: int, waiting: int, steps: int, folder: Path) -> dict[str, Any]:
    """Measure one number of running and waiting requests."""
    sides = [Side(folder, running, waiting, ours) for ours in (False, True)]
    for side in sides:
        for _ in range(min(200, 2 * running + 50)):
            side.step()
        side.forget()
    gc.collect()
    gc.freeze()  # as vLLM's engine core does
    for turn in range(steps // TURN_STEPS):
        for side in sides if turn % 2 else sides[::-1]:
            for _ in range(TURN_STEPS):
                side.step()
    gc.unfreeze()
    theirs, ours = sides
    held = np.array(ours.held).mean(axis=0)
    found: dict[str, Any] = {
        "running": running,
        "waiting": waiting,
        "steps": len(ours.times["schedule"]),
        "held_running": float(held[0]),
        "held_waiting": float(held[1]),
        "unplanned_steps": ours.unplanned,
        "vllm_schedule_ms": quantiles(theirs.times["schedule"]),
        "vllm_update_ms": quantiles(theirs.times["update"]),
        "planner_ms": quantiles(ours.times["planner"]),
        "planner_cpu_ms": quantiles(ours.busy["planner"]),
        "vllm_schedule_cpu_ms": quantiles(theirs.busy["schedule"]),
        "slo_opt_schedule_ms": quantiles(ours.times["schedule"]),
        "slo_opt_update_ms": quantiles(ours.times["update"]),
    }
    found["planner_of_schedule"] = found["planner_ms"]["p50"] / found["vllm_schedule_ms"]["p50"]
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and tail, in milliseconds."""
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99}


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| running | waiting | planner p50 | p99 | CPU time p99 | vLLM's own schedule() p50 | p99 | CPU time p99 | "
        "planner / schedule() | schedule() with slo-opt p50 | p99 | update_from_output() p50, vLLM | with slo-opt |",
        f"|{'---|' * 13}",
    ]
    for row in cells:
        figures = [
            *(row["planner_ms"][name] for name in ("p50", "p99")),
            row["planner_cpu_ms"]["p99"],
            *(row["vllm_schedule_ms"][name] for name in ("p50", "p99")),
            row["vllm_schedule_cpu_ms"]["p99"],
        ]
        more = [*(row["slo_opt_schedule_ms"][name] for name in ("p50", "p99")), row["vllm_update_ms"]["p50"]]
        more.append(row["slo_opt_update_ms"]["p50"])
        lines.append(
            f"| {row['running']} | {row['waiting']} | {' | '.join(f'{value:.3f}' for value in figures)} | "
            f"{row['planner_of_schedule']:.0%} | {' | '.join(f'{value:.3f}' for value in more)} |"
        )
    return "\n".join(
        [*lines, "", f"Times in milliseconds; {sum(row['unplanned_steps'] for row in cells)} steps without a plan.", ""]
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="measured steps a side and cell")
    parser.add_argument("--running", default=",".join(map(str, RUNNING)))
    parser.add_argument("--waiting", default=",".join(map(str, WAITING)))
    parser.add_argument("--name", default="live_overhead", help="of the results; empty prints and writes nothing")
    parser.add_argument("--quick", action="store_true", help="few steps, nothing kept: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.name = 100, ""
    os.environ.update({"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for running in map(int, options.running.split(",")):
            for waiting in map(int, options.waiting.split(",")):
                cells.append(cell(running, waiting, options.steps, Path(folder)))
                print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    record(options.name, cells, table(cells))
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
