"""Gap tables: policies against the bound, load by load and class by class."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.analysis.solve import SERVABLE
from slo_opt.report.sweep_heading import sweep_heading
from slo_opt.report.table import new_table, percent

_MAX_CLASSES = 12
_UNPROVED = " *"


def load_name(row: Mapping[str, Any]) -> str:
    """A load as a column head: the factor, and the rate where it is known."""
    return f"{row['load']:g}x" if row["rate"] is None else f"{row['load']:g}x · {row['rate']:.3g}/s"


def gap_tables(document: Mapping[str, Any]) -> RenderableType:
    """Heading, a table of loads, one of classes where there are several, and what the figures mean.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.gap_table.gap_document`.
    """
    loads = document["loads"]
    parts: list[RenderableType] = [_heading(document), _loads(document, loads)]
    names = sorted({entry["name"] for row in loads for policy in row["policies"] for entry in policy["classes"]})
    if len(names) > 1:
        parts.append(_classes(document, loads, names[:_MAX_CLASSES]))
        if len(names) > _MAX_CLASSES:
            parts.append(Text(f"and {len(names) - _MAX_CLASSES} more classes: --format json", style="dim"))
    parts.append(_meaning(document))
    return Group(*parts)


def _heading(document: Mapping[str, Any]) -> Text:
    text = Text(f"Information gap · {document['name']}", style="bold")
    first = next((row for row in document["loads"] if row["engine"] is not None), None)
    facts = [] if first is None or first["engine"] in document["name"] else [first["engine"]]
    facts += [] if first is None else [f"score rule {first['score_rule']}"]
    facts += [
        f"lengths {document['lengths']}",
        "best static setting" if document["all_settings"] else "default settings",
    ]
    return sweep_heading(text, facts, document)


def _loads(document: Mapping[str, Any], loads: list[Mapping[str, Any]]) -> Table:
    bounded = document["no_bound"] is None
    table = new_table(
        "attained of the bound" if bounded else "attained of offered", *(f">{load_name(row)}" for row in loads)
    )
    table.add_row("offered", *(_count(row["offered"]) for row in loads), style="dim")
    if bounded:
        table.add_row("bound", *(_count(row["bound"]) + _UNPROVED * _unproved(row) for row in loads), style="dim")
    table.add_section()
    for policy in document["policies"]:
        cells = []
        for row in loads:
            found = next((entry for entry in row["policies"] if entry["policy"] == policy), None)
            share = None if found is None else found["of_bound" if bounded else "of_offered"]
            cells.append("–" if found is None else f"{percent(share)}  ({_count(found['value'])})")
        table.add_row(policy, *cells)
    return table


def _classes(document: Mapping[str, Any], loads: list[Mapping[str, Any]], names: list[str]) -> Table:
    """At the load nearest to 1."""
    row = min(loads, key=lambda row: abs(row["load"] - 1))
    bounded = document["no_bound"] is None
    title = f"By SLO class at load {row['load']:g}, of the {'class bound' if bounded else 'offered'}"
    table = new_table("policy", *(f">{name}" for name in names), title=title)
    for policy in row["policies"]:
        by_name = {entry["name"]: entry for entry in policy["classes"]}
        cells = []
        for name in names:
            entry = by_name.get(name)
            share = None
            if entry is not None:
                share = entry["of_bound"] if bounded else entry["value"] / entry["offered_value"]
            cells.append(percent(share))
        table.add_row(policy["policy"], *cells)
    return table


def _meaning(document: Mapping[str, Any]) -> Text:
    if document["no_bound"] is not None:
        return Text(f"No bound: {document['no_bound']}.", style="bold")
    text = Text("No schedule exceeds the bound, clairvoyant ones included. ", style="bold")
    text.append("What a policy lacks is the information gap, less what the bound is too high by. ", style="not bold")
    text.append(f"Execution gap: {document['gaps']['execution']}.", style="not bold")
    if any(map(_unproved, document["loads"])):
        text.append(
            f"\n{_UNPROVED.strip()} Within the time limit nothing less was proved than what an idle engine attains.",
            style="not bold",
        )
    return text


def _unproved(row: Mapping[str, Any]) -> bool:
    """Whether the bound counts what an idle engine could attain, and more time might prove less."""
    return bool(row["bound_by"] == SERVABLE and row["bound_status"] != "optimal")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.6g}"
