"""Import and help load no solver, and no plot library."""

import subprocess
import sys

import pytest

HEAVY = ("numba", "highspy", "ortools", "pyomo", "cvxpy", "matplotlib", "scipy", "pandas", "vllm", "ray")


@pytest.mark.parametrize(
    "statement",
    [
        "import slo_opt",
        "import slo_opt.cli.main",
        "import slo_opt.solvers.registry",
        "import slo_opt.traces.read",
        "import slo_opt.report.table, slo_opt.report.timeline, slo_opt.report.bounds",
        "import slo_opt.report.runs, slo_opt.report.load, slo_opt.report.attainment",
        "run('--help')",
        "run('solve', '--help')",
        "run('capacity', '--help')",
        "run('gap', '--help')",
        "run('simulate', '--help')",
        "run('compare', '--help')",
        "run('replay', '--help')",
        "run('calibrate', '--help')",
        "run('plan', '--help')",
        "run('route', '--help')",
        "run('ray', '--help')",
        "run('--version')",
        "run('doctor')",
        "run('solve', 'nowhere.json')",
    ],
)
def test_no_heavy_library_is_loaded(statement: str):
    code = f"""
import sys
def run(*arguments):
    from slo_opt.cli.main import main
    sys.argv = ["slo-opt", *arguments]
    try:
        main()
    except SystemExit:
        pass
{statement}
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("LOADED", loaded)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"


def test_help_does_not_load_the_table_library():
    code = "import sys; import slo_opt.cli.main; print('rich' in sys.modules, 'msgspec' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"
