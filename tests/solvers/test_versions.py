"""The version guard, and that the installed HiGHS solves what 1.14.0 got wrong."""

import subprocess
import sys

import highspy
import numpy as np
import pytest

from slo_opt.domain.errors import SolverNotAvailableError
from slo_opt.solvers.versions import check_versions, forbidden, release, require

GOOD = {"highspy": "1.13.1", "ortools": "9.15.6755", "pyomo": "6.10.1", "cvxpy": "1.9.1"}


def test_the_installed_ones_are_in_use() -> None:
    assert all(row.ok for row in check_versions()), check_versions()


@pytest.mark.parametrize(
    ("name", "version", "phrase"),
    [
        ("highspy", "1.14.0", "wrong MIP optima"),
        ("highspy", "1.15.1", "one process with OR-Tools"),
        ("highspy", "1.12.0", ">=1.13.1,<1.14"),
        ("ortools", "9.16.1000", "issue 5246"),
        ("ortools", "9.14.6206", ">=9.15,<9.16"),
        ("cvxpy", "1.9.2", "highspy >= 1.14"),
        ("cvxpy", "2.0", ">=1.9,<1.9.2"),
        ("pyomo", "6.9.4", ">=6.10,<7"),
        ("pyomo", "7.0rc1", ">=6.10,<7"),
    ],
)
def test_bad_versions_are_refused_with_the_reason(name: str, version: str, phrase: str) -> None:
    installed = (GOOD | {name: version}).get
    with pytest.raises(SolverNotAvailableError, match=f"{name} {version}") as error:
        require("highspy", name, installed=installed)
    assert phrase in str(error.value)
    assert "pip install" in str(error.value)
    rows = check_versions(installed)
    assert [row.name for row in rows if not row.ok] == [name]
    assert phrase in forbidden(rows)[name]


@pytest.mark.parametrize(("name", "extra"), [("ortools", "[exact]"), ("pyomo", "[exact]"), ("cvxpy", "[exact]")])
def test_a_missing_one_names_the_extra(name: str, extra: str) -> None:
    installed = {key: version for key, version in GOOD.items() if key != name}.get
    with pytest.raises(SolverNotAvailableError, match="not installed") as error:
        require(name, installed=installed)
    assert f"pip install 'slo-opt{extra}'" in str(error.value)
    assert forbidden(check_versions(installed)) == {}


def test_require_gives_versions() -> None:
    assert require("cvxpy", "highspy", installed=GOOD.get) == {"cvxpy": "1.9.1", "highspy": "1.13.1"}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1.13.1", (1, 13, 1)), ("1.14.0rc2", (1, 14, 0)), ("9.15.6755+cpu", (9, 15, 6755)), ("7.dev", (7,))],
)
def test_release(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def test_the_check_imports_no_solver() -> None:
    code = (
        "import sys; from slo_opt.solvers.versions import check_versions; check_versions(); "
        "sys.exit(any(name in sys.modules for name in ('highspy', 'ortools', 'pyomo', 'cvxpy', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_installed_highs_gives_nine() -> None:
    """``min 2x + 3z, x + z >= 4.5``, z integer, both >= 0: ``x = 4.5`` costs 9. HiGHS 1.14.0 says 15."""
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = 2, 1
    lp.col_cost_ = np.array([2.0, 3.0])
    lp.col_lower_, lp.col_upper_ = np.zeros(2), np.full(2, highspy.kHighsInf)
    lp.row_lower_, lp.row_upper_ = np.array([4.5]), np.array([highspy.kHighsInf])
    lp.integrality_ = [highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger]
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = np.array([0, 2]), np.array([0, 1])
    lp.a_matrix_.value_ = np.ones(2)
    highs = highspy.Highs()
    highs.silent()
    highs.passModel(lp)
    highs.run()
    assert highs.getInfo().objective_function_value == pytest.approx(9.0)
