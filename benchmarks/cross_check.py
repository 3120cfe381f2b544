"""All admission solvers on the same random plans: 0 differences are demanded.

    python benchmarks/cross_check.py --plans 5000

Each plan is solved by every solver and, up to 10 candidates, by enumeration; termination, value and bound must agree.
Progress is kept in a file beside the results after each block of 100 plans; a run that was stopped goes on from there.
Writes benchmarks/results/cross_check.json and cross_check.md. Exit code 1 if anything differs.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from random_plans import best_value, random_plan
from record import RESULTS, record

from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.registry import ADMISSION_SOLVERS, admission_solver
from slo_opt.solvers.versions import check_versions

BLOCK = 100
LARGER_EVERY, LARGER_CANDIDATES = 10, 40  # every tenth plan is larger, without enumeration


def answer(termination: Termination, primal: float | None, dual: float | None) -> str:
    """What has to agree, as text."""
    if termination is Termination.OPTIMAL and primal is not None and primal == dual:
        return f"optimal {primal:.0f}"
    return termination.value if termination is Termination.INFEASIBLE else f"{termination.value} {primal} {dual}"


def compare(seed: int, solvers: dict[str, Any], seconds: Counter[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Traits of one plan, and what each method says about it."""
    larger = seed % LARGER_EVERY == 0
    plan = random_plan(seed, LARGER_CANDIDATES if larger else 10)
    said = {}
    if not larger:
        began = time.perf_counter()
        best = best_value(plan.problem)
        seconds["enumeration"] += time.perf_counter() - began
        said["enumeration"] = Termination.INFEASIBLE.value if best is None else f"optimal {best}"
    for name, solver in solvers.items():
        began = time.perf_counter()
        result = solver.solve(plan.problem, SolverConfig())
        seconds[name] += time.perf_counter() - began
        said[name] = answer(result.termination, result.bounds.primal, result.bounds.dual)
        if result.accepted is not None and (why := plan.problem.check(result.accepted)) is not None:
            said[name] += f", but the set fails: {why}"
    return plan.traits, said


def run(plans: int, first_seed: int, names: list[str], fresh: bool) -> dict[str, Any]:
    """All plans, from where an earlier run of the same settings stopped."""
    RESULTS.mkdir(exist_ok=True)
    progress = RESULTS / "cross_check.progress.json"
    settings = {"first_seed": first_seed, "solvers": names, "versions": {r.name: r.installed for r in check_versions()}}
    state: dict[str, Any] = {"settings": settings, "done": 0, "differences": [], "seconds": {}, "counts": {}}
    if progress.exists() and not fresh:
        earlier = json.loads(progress.read_text())
        if earlier["settings"] == settings:
            state = earlier
    solvers = {name: admission_solver(name) for name in names}
    seconds, counts = Counter(state["seconds"]), Counter(state["counts"])
    began = time.perf_counter()
    for number in range(state["done"], plans):
        traits, said = compare(first_seed + number, solvers, seconds)
        counts.update(f"{name}: {trait}" for name, trait in traits.items())
        counts.update([f"answer: {said[names[0]].split()[0]}"])
        if len(set(said.values())) > 1:
            state["differences"].append({"seed": first_seed + number, "said": said})
        if (number + 1) % BLOCK == 0 or number + 1 == plans:
            state |= {"done": number + 1, "seconds": dict(seconds), "counts": dict(counts)}
            progress.write_text(json.dumps(state))
            gone_s = time.perf_counter() - began
            print(
                f"{number + 1}/{plans} plans, {len(state['differences'])} differences, {gone_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    progress.unlink(missing_ok=True)
    return state


def table(state: dict[str, Any]) -> str:
    """Markdown."""
    done = state["done"]
    lines = [
        f"{done} random plans, {len(state['differences'])} differences.",
        "",
        "| method | version | mean ms a plan |",
        "|---|---|---|",
    ]
    versions = state["settings"]["versions"]
    library = {"highs": "highspy", "cpsat": "ortools", "pyomo": "pyomo", "cvxpy": "cvxpy"}
    for name, spent in state["seconds"].items():
        solved = done - done // LARGER_EVERY if name == "enumeration" else done
        version = versions.get(library.get(name, ""), "") or "–"
        lines.append(f"| {name} | {version} | {1e3 * spent / max(solved, 1):.2f} |")
    kinds: dict[str, list[str]] = {}
    for key, amount in sorted(state["counts"].items()):
        kind, trait = key.split(": ")
        if kind != "candidates":
            kinds.setdefault(kind, []).append(f"{trait} {amount}")
    lines += ["", "| trait | plans |", "|---|---|"]
    lines += [f"| {kind} | {', '.join(found)} |" for kind, found in kinds.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=5000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--solvers", nargs="+", choices=list(ADMISSION_SOLVERS), default=list(ADMISSION_SOLVERS))
    parser.add_argument("--fresh", action="store_true", help="forget the progress of a run that was stopped")
    chosen = parser.parse_args()
    state = run(chosen.plans, chosen.first_seed, chosen.solvers, chosen.fresh)
    record("cross_check", state, table(state))
    print(table(state))
    return 1 if state["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
