"""The built wheel holds exactly what the tree holds: nothing forgotten in pyproject.toml, nothing stray."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("engine_bridge", "formulations", "solvers")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def tree() -> set[str]:
    """Files below the four folders that belong into the wheel, under their installed names."""
    found = {
        path for path in (ROOT / "slo_opt").rglob("*") if path.relative_to(ROOT / "slo_opt").parts[0] not in LINKED
    }
    names = {path.relative_to(ROOT).as_posix() for path in found if wanted(path)}
    for folder in LINKED:
        files = (path for path in (ROOT / folder).rglob("*") if wanted(path))
        names |= {f"slo_opt/{path.relative_to(ROOT).as_posix()}" for path in files}
    return names


def wanted(path: Path) -> bool:
    return path.is_file() and (path.suffix in (".py", ".json", ".md", ".typed")) and "__pycache__" not in path.parts


def test_links_point_at_the_top_level_folders():
    for folder in LINKED:
        link = ROOT / "slo_opt" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder


def test_every_package_is_named():
    named = set(SETUPTOOLS["packages"])
    found = {Path(name).parent.as_posix().replace("/", ".") for name in tree() if name.endswith("__init__.py")}
    assert named == found


def test_wheel_holds_the_tree(tmp_path: Path):
    pytest.importorskip("build")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("slo_opt", *LINKED):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {name for name in names if ".dist-info/" not in name}
    assert modules == tree()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in modules} == {"slo_opt"}


def test_extras_cover_the_version_rules():
    """What `doctor` demands is what pyproject.toml installs."""
    from slo_opt.solvers.versions import check_versions

    project = PYPROJECT["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["exact"]]
    for row in check_versions():
        assert f"{row.name}{row.required}" in stated
