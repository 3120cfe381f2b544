"""Random plans against the real scheduler of several vLLM releases: deviations, leaked KV blocks, requests cut short.

    python benchmarks/plan_fidelity.py --steps 2000 --source 0.25.1=unpacked/0.25.1 --source 0.29.0=unpacked/0.29.0

Runs without a model, in the environment where vLLM is installed: that release, and each one named with --source
(a folder that holds an unpacked wheel). Takes a few minutes a release. Also times a planned step beside vLLM's own, in
turn in one process. Writes benchmarks/results/plan_fidelity.json and plan_fidelity.md. Exit code 1 if a plan was not
followed to the letter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import record

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "engine_bridge"


def run(program: str, source: Path | None, arguments: list[str]) -> Any:
    """The JSON that a program of the tests prints, run with the vLLM found in `source`."""
    folders = [str(source) if source else "", str(TESTS), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(folder for folder in folders if folder)
    environment = {**os.environ, "PYTHONPATH": path, "VLLM_TARGET_DEVICE": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(TESTS / program), folder, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{program} with vLLM of {source or 'this environment'} failed:\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def tables(releases: list[dict[str, Any]], cost: list[dict[str, Any]]) -> str:
    """Two tables in Markdown: fidelity by mode, and the cost of a planned step."""
    heads = ["vLLM", "mode", "planned steps", "tokens", "drafts", "preemptions", "aborts"]
    heads += ["deviations", "leaked blocks", "requests cut short"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 2)]
    for release in releases:
        for row in release["runs"]:
            cells = [release["vllm"], row["mode"]]
            cells += [row[name] for name in ("planned_steps", "planned_tokens", "drafts", "preemptions", "aborts")]
            cells += [sum(row["deviations"].values()), row["leaked_blocks"], row["wrong_requests"]]
            lines.append("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells) + " |")
    lines += ["", "| running | waiting | vLLM's own `schedule()`, ms | planned, ms | ratio |", "|--:|--:|--:|--:|--:|"]
    for row in cost:
        times = f"{1e3 * row['own_s']:.3f} | {1e3 * row['planned_s']:.3f} | {row['ratio']:.2f}"
        lines.append(f"| {row['running']} | {row['waiting']} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check all releases, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="planned steps a mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200, help="timed steps of each kind a state")
    parser.add_argument("--jobs", type=int, default=1, help="releases checked at a time")
    parser.add_argument("--source", action="append", default=[], metavar="RELEASE=FOLDER")
    options = parser.parse_args()
    sources = [None, *(Path(source.partition("=")[2]).resolve() for source in options.source)]
    arguments = [str(options.steps), str(options.seed)]
    with ThreadPoolExecutor(options.jobs) as pool:
        releases = list(pool.map(lambda source: run("fidelity.py", source, arguments), sources))
    cost = run("steering_cost.py", None, [str(options.repeats)])
    releases.sort(key=lambda release: release["vllm"])
    said = {"steps": options.steps, "seed": options.seed, "releases": releases, "cost": cost}
    text = tables(releases, cost)
    record("plan_fidelity", said, text)
    print(text)
    rows = [row for release in releases for row in release["runs"]]
    if any(row["deviations"] or row["leaked_blocks"] or row["wrong_requests"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
