"""Start-up time of the command line beside that of a bare interpreter.

    python benchmarks/start_up.py

Median wall time of 15 runs each, in turn. Writes benchmarks/results/start_up.json and .md.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import record

SLO_OPT = str(Path(sys.executable).parent / "slo-opt")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import slo_opt'": [sys.executable, "-c", "import slo_opt"],
    "slo-opt --help": [SLO_OPT, "--help"],
    "slo-opt trace --help": [SLO_OPT, "trace", "--help"],
}
RUNS = 15


def main() -> None:
    """Measure and write."""
    times_s: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times_s[name].append(time.perf_counter() - began)
    medians = {name: round(statistics.median(times), 3) for name, times in times_s.items()}
    bare = medians["python -c pass"]
    lines = ["| command | median s | times a bare interpreter |", "|---|---|---|"]
    lines += [f"| `{name}` | {median:.3f} | {median / bare:.1f} |" for name, median in medians.items()]
    record("start_up", {"runs": RUNS, "median_s": medians}, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
