"""Ctrl-C while HiGHS is at work: the bound that comes back is still a bound."""

import subprocess
import sys
from pathlib import Path

CODE = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from greedy import GreedySolver
from slo_opt.analysis.solve import solve_instance
from slo_opt.solvers.interface import SolverConfig
from slo_opt.solvers.registry import schedule_solver
from slo_opt.traces.read import read_trace

instance = read_trace(sys.argv[2]).to_instance()
seen = []

def progress(phrase, share):
    seen.append(phrase)
    if phrase.startswith("highs: " + sys.argv[3]) and not fired:
        fired.append(True)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

fired = []
named = lambda name: GreedySolver() if name == "search" else schedule_solver(name)
report = solve_instance(instance, ("search", "highs"), SolverConfig(progress=progress), named)
method = report.methods[1]
print(method.status, report.attained, report.bound, len(instance.requests))
"""


ROOT = Path(__file__).parents[2]


def test_interrupted_bound_is_sound():
    # Without a limit the bound is tightened for very long: the interrupt comes first.
    arguments = [str(ROOT / "tests/cli"), str(ROOT / "examples/coder-burst.json"), "integer programs"]
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    status, attained, bound, count = result.stdout.split()
    assert status == "interrupted"
    assert 0 < float(attained) <= float(bound) <= float(count)
