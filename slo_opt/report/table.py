"""Results as tables for a terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.analysis.explain import Explanation
from slo_opt.report.class_rows import class_rows

_BOX = box.SIMPLE_HEAD
_WHY = "most is held by, or why"
_WRAPPED = frozenset({_WHY, "policy"})


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _number(value: float | None) -> str:
    """Counts without decimals, fractional values to six digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1e5 else f"{value:,.6g}"


def new_table(*columns: str, title: str | None = None) -> Table:
    """Text columns first; those that start with ``>`` hold numbers."""
    table = Table(box=_BOX, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=column not in _WRAPPED)
    return table


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def heading(document: dict[str, Any]) -> Text:
    """One line: trace, engine, score rule."""
    trace, replicas = document["trace"], document["num_replicas"]
    text = Text(trace["name"], style="bold")
    if trace["scenario"]:
        text.append(f" · {trace['scenario']}", style="not bold")
    if trace["window"]:
        text.append(f" · {trace['window'][0]:g}–{trace['window'][1]:g} s", style="not bold")
    if trace["scale"] != 1:
        text.append(f" · {trace['scale']:g}x rate", style="not bold")
    fleet = "" if replicas == 1 else f" · {replicas} replicas"
    dropped = f" · {plural(trace['dropped'], 'request')} dropped" if trace["dropped"] else ""
    text.append(
        f"\n{document['engine']['name']}{fleet} · score rule {document['score_rule']}{dropped}", style="not bold dim"
    )
    return text


def verdict(document: dict[str, Any]) -> Text:
    """The result in a sentence, with both denominators."""
    text = Text()
    offered, attained, gap = document["offered"], document["attained"], document["gap"]
    if document["schedule"] is None:
        text.append("No schedule. ", style="bold red")
        text.append(f"No scheduler can exceed a value of {_number(document['bound'])}")
        text.append(f" of {_number(document['offered_value'])} offered ({document['bound_by']}).")
        return text
    text.append(f"{attained:,} of {offered:,} offered requests attained", style="bold green")
    text.append(f" ({percent(document['attainment'])} of offered, {percent(document['attainment_admitted'])} of ")
    text.append(f"{document['admitted']:,} admitted). ")
    if gap == 0:
        text.append("Proved optimal: no scheduler can do better.", style="bold")
    else:
        weighted = document["value"] != attained
        text.append("No scheduler can exceed ")
        text.append(_number(document["bound"]), style="bold")
        text.append(f" in value against {_number(document['value'])} here: gap " if weighted else ": gap ")
        text.append(percent(gap, 2), style="bold")
        text.append(".")
    return text


def live_verdict(document: dict[str, Any]) -> Text | None:
    """How the same requests fared on the live engine that logged them; None where the trace does not say."""
    facts = document["trace"]["provenance"]
    offered, attained, value = (facts.get(name) for name in ("live_offered", "live_attained", "live_value"))
    if not offered or not all(isinstance(figure, (int, float)) for figure in (offered, attained, value)):
        return None
    text = Text(f"Served live: {attained:,} of {offered:,} attained", style="bold")
    text.append(f" ({percent(attained / offered)} of offered)", style="not bold")
    bound = document["bound"]
    if offered != document["offered"] or bound is None:
        text.append(".", style="not bold")
    elif value > bound * (1 + 1e-9):
        text.append(", more than the engine model allows: the engine is faster than its model.", style="not bold")
    else:
        short = (bound - value) / bound if bound else 0.0
        text.append(f", {percent(short, 2)} below what no scheduler can exceed.", style="not bold")
    return text


def solve_tables(document: dict[str, Any]) -> RenderableType:
    """Heading, methods, SLO classes and verdict of a solve.

    Parameters
    ----------
    document : dict
        See `slo_opt.report.document.solve_document`.
    """
    methods = new_table("method", ">attained", ">value", ">bound", ">gap", "status", ">time")
    for row in document["methods"]:
        cells = (_number(row["attained"]), _number(row["value"]), _number(row["bound"]), percent(row["gap"], 2))
        methods.add_row(row["method"], *cells, row["status"], f"{row['wall_s']:.1f} s")
    methods.add_section()
    best = document["schedule"] is not None
    methods.add_row(
        "best",
        _number(document["attained"]) if best else "–",
        _number(document["value"]) if best else "–",
        _number(document["bound"]),
        percent(document["gap"], 2),
        document["status"],
        f"{document['wall_s']:.1f} s",
        style="bold",
    )
    classes = new_table(
        "SLO class", "TTFT", "TPOT", ">offered", ">admitted", ">attained", ">of offered", ">of admitted"
    )
    for row in class_rows(document["classes"]):
        counts = [f"{count:,}" for count in (row.offered, row.admitted, row.attained)]
        shares = [percent(row.attained / whole if whole else None) for whole in (row.offered, row.admitted)]
        classes.add_row(row.name, row.ttft, row.tpot, *counts, *shares)
    parts: list[RenderableType] = [heading(document), methods, classes, verdict(document)]
    live = live_verdict(document)
    return Group(*parts) if live is None else Group(*parts, live)


def explain_tables(explanations: Sequence[Explanation], limit: int | None = None) -> RenderableType:
    """Declined requests by reason and class, then one row each.

    Parameters
    ----------
    explanations : sequence of Explanation
        One per declined request.
    limit : int or None
        Most rows shown in detail; the rest are counted.
    """
    if not explanations:
        return Text("Every request under an SLO is attained: nothing was declined.")
    reasons = sorted({item.reason for item in explanations})
    counts = Counter((item.slo, item.reason) for item in explanations)
    summary = new_table("SLO class", *(f">{reason}" for reason in reasons), ">declined")
    for slo in sorted({item.slo for item in explanations}):
        row = [counts[slo, reason] for reason in reasons]
        summary.add_row(slo, *map(str, row), str(sum(row)))
    shown = list(explanations if limit is None else explanations[:limit])
    detail = new_table("request", "class", "reason", ">window, s", ">needs", ">free", _WHY)
    for item in shown:
        window = f"{item.window_s[0]:.2f}–{item.window_s[1]:.2f}"
        detail.add_row(
            item.request_id, item.slo, item.reason, window, *_needs_and_free(item), _holders(item) or item.text
        )
    parts: list[RenderableType] = [summary, detail]
    if len(shown) == 1:
        parts.append(Text(f"{shown[0].request_id}: {explanation_text(shown[0])}"))
    if len(shown) < len(explanations):
        parts.append(Text(f"and {len(explanations) - len(shown):,} more (--all shows them)", style="dim"))
    return Group(*parts)


def _needs_and_free(item: Explanation) -> tuple[str, str]:
    """Engine time where it was weighed, else KV blocks."""
    if item.needs_s is not None and item.free_s is not None:
        return f"{1e3 * item.needs_s:.0f} ms", f"{1e3 * item.free_s:.0f} ms"
    if item.needs_blocks is not None and item.free_blocks is not None:
        return f"{item.needs_blocks:,} blocks", f"{item.free_blocks:,} blocks"
    return "", ""


def _holders(item: Explanation) -> str:
    return ", ".join(f"{name} ({1e3 * seconds:.0f} ms)" for name, seconds in item.holders)


def explanation_text(item: Explanation) -> str:
    """The reason with its figures and who holds the time."""
    held = _holders(item)
    return f"{item.text}; most is held by {held}" if held else item.text
