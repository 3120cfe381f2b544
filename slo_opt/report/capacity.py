"""Capacities as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from slo_opt.report.sweep_heading import sweep_heading
from slo_opt.report.table import new_table, percent, plural


def capacity_tables(document: Mapping[str, Any]) -> RenderableType:
    """Heading, one table a scenario and engine, and the geometric means.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.capacity.capacity_document`.
    """
    parts: list[RenderableType] = [_heading(document)]
    for cell in document["cells"]:
        table = new_table(
            "policy",
            ">requests/s per GPU",
            ">95 % interval",
            ">attained",
            "best setting",
            f">ratio to {cell['baseline'] or 'baseline'}",
            title=f"{cell['scenario']} · {cell['engine']}",
        )
        top = max(row["rate_per_gpu"] for row in cell["rows"])
        for row in cell["rows"]:
            interval = "–" if row["ci95"] is None else f"{max(row['ci95'][0], 0):.3g}–{row['ci95'][1]:.3g}"
            shares = [share for share in row["attainment"] if share is not None]
            table.add_row(
                row["policy"],
                f"{row['rate_per_gpu']:.3g}",
                interval,
                percent(sum(shares) / len(shares) if shares else None),
                setting_text(row),
                "–" if row["ratio"] is None else f"{row['ratio']:.2f}x",
                style="bold" if row["rate_per_gpu"] == top > 0 else None,
            )
        parts += [table, Text(f"{cell['source']}", style="dim")]
    if len(document["cells"]) > 1:
        parts.append(_means(document))
    return Group(*parts)


def setting_text(row: Mapping[str, Any]) -> str:
    """The setting that was best most often over the seeds, or a dash where there is nothing to set."""
    words = ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in row["setting"].items()
    )
    agreed = sum(setting == row["setting"] for setting in row["settings"])
    total = len(row["settings"])
    return f"{words or '–'}{'' if agreed == total or not words else f' ({agreed} of {total} seeds)'}"


def _heading(document: Mapping[str, Any]) -> Text:
    text = Text(f"Capacity at {percent(document['target'], 0)} attainment", style="bold")
    facts = [
        plural(document["seeds"], "seed"),
        f"lengths {document['lengths']}",
        f"score rule {document['score_rule']}",
        f"rate to {percent(document['tolerance'], 0)}",
    ]
    return sweep_heading(text, facts, document)


def _means(document: Mapping[str, Any]) -> RenderableType:
    baselines = ", ".join(document["baselines"])
    table = new_table("policy", ">geometric mean of the ratios", ">cells", title=f"Against the best of {baselines}")
    for row in document["geometric_means"]:
        table.add_row(row["policy"], "–" if row["ratio"] is None else f"{row['ratio']:.2f}x", str(row["cells"]))
    return table
