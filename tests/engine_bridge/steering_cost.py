"""What steering adds to a step: vLLM's own ``schedule()`` and a planned one, step by step in turn.

``python steering_cost.py FOLDER REPEATS`` prints the medians as JSON; so it also measures other releases of vLLM.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from fidelity import planning
from harness import loaded_harness

from slo_opt.engine_bridge.steering import StepPlan

RUNNING = (10, 100, 500)
WAITING = (0, 1000)


def step_cost(folder: Path, running: int, waiting: int, repeats: int) -> dict[str, float]:
    """Median seconds of `schedule()` without and with a plan that asks for the same batch, all decodes."""
    harness = loaded_harness(folder, running, waiting, planning)
    scheduler = harness.scheduler
    plan = StepPlan([(request.request_id, 1) for request in scheduler.running])
    times: dict[str, list[float]] = {"own": [], "planned": []}
    schedule = scheduler.schedule

    for k in range(repeats):
        for kind in ("own", "planned") if k % 2 else ("planned", "own"):
            scheduler.plan = plan if kind == "planned" else None

            def timed(kind=kind):
                began = time.perf_counter()
                output = schedule()
                times[kind].append(time.perf_counter() - began)
                return output

            scheduler.schedule = timed
            output = harness.step()
            if len(output.num_scheduled_tokens) != running:
                raise AssertionError(f"{len(output.num_scheduled_tokens)} of {running} decodes scheduled")
    own, planned = statistics.median(times["own"]), statistics.median(times["planned"])
    return {"running": running, "waiting": waiting, "own_s": own, "planned_s": planned, "ratio": planned / own}


def main(arguments: list[str]) -> None:
    folder, repeats = Path(arguments[0]), int(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [step_cost(folder, running, waiting, repeats) for waiting in WAITING for running in RUNNING]
    print("RESULT " + json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
