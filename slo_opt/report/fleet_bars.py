"""Fleets side by side: what is proved to be needed, and what each pair of scheduler and router needs, by stress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slo_opt.report import figure as look
from slo_opt.report.fleet_heading import plan_heading

_OURS = "slo-opt"


def draw_fleet_bars(document: Mapping[str, Any], path: Path) -> None:
    """Draw a plan into a file: a panel for each stress, a bar for each pair, a line at the bound.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.fleet_plan.plan_document`.
    path : Path
        Its ending chooses the format.
    """
    rows = document["stresses"]
    tallest = max([1, *(len(row["policies"]) for row in rows)])
    figure = look.new_figure(max(7.0, 3.6 * len(rows)), 1.9 + 0.34 * tallest)
    panels = figure.subplots(1, len(rows), squeeze=False).ravel()
    several = len(document["engines"]) > 1
    for axes, row in zip(panels, rows, strict=True):
        names = []
        bound = None if row["bound"] is None else row["bound"]["price"]
        for place, policy in enumerate(row["policies"]):
            names.append(policy["pair"] + (f"\n{policy['engine']}" if several else ""))
            colour = look.ATTAINED if policy["policy"] == _OURS else look.DECODE
            price = policy["price"] or 0.0
            axes.barh(place, price, 0.7, color=colour)
            ratio = "" if policy["ratio"] is None else f" {policy['ratio']:.2f}x"
            text = f" > {document['limit']}" if policy["price"] is None else f" {price:g}{ratio}"
            axes.text(price, place, text, va="center", fontsize=8)
        if bound is not None:
            axes.axvline(bound, color=look.INK, linewidth=2.0, linestyle="--")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * max([bound or 1.0, *(policy["price"] or 0.0 for policy in row["policies"])]))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_title(row["name"])
    unit = "replicas" if all(engine["price"] == 1 for engine in document["engines"]) else "price an hour"
    figure.supxlabel(f"{unit}; dashed: proved to be needed by any scheduler", fontsize=9)
    plan_heading(figure, document, f"lengths {document['lengths']}")
    look.save(figure, path)
