"""What `slo-opt doctor` shows."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.solvers.versions import VersionRow


def doctor_tables(machine: dict[str, Any], rows: Sequence[VersionRow]) -> RenderableType:
    """Machine facts, then one row per solver library.

    Parameters
    ----------
    machine : dict
        Names and facts; None for what is not installed.
    rows : sequence of VersionRow
        See `slo_opt.solvers.versions.check_versions`.
    """
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in machine.items():
        facts.add_row(name, "not installed" if fact is None else str(fact))
    libraries = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("solver", "installed", "required", "state"):
        libraries.add_column(column)
    for row in rows:
        style = "green" if row.ok else "red" if row.installed else "yellow"
        libraries.add_row(row.name, row.installed or "–", row.required, Text(row.reason or "ok", style=style))
    return Group(facts, libraries)
