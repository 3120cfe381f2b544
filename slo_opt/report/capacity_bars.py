"""Capacity bars: requests a second a GPU, a panel for each scenario and engine."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slo_opt.report import figure as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_OURS = "slo-opt"


def _draw_cell(axes: "Axes", cell: Mapping[str, Any], baselines: list[str]) -> None:
    rows = cell["rows"]
    top = max(row["rate_per_gpu"] for row in rows) or 1.0
    # An interval of two seeds may be far wider than all bars.
    longest = min(2 * top, max(max(row["rate_per_gpu"], *(row["ci95"] or [0])) for row in rows)) or 1.0
    for place, row in enumerate(rows):
        rate = row["rate_per_gpu"]
        ours, known = row["policy"] == _OURS, row["policy"] in baselines
        colour = look.ATTAINED if ours else look.PREFILL if known else look.DECODE
        axes.barh(place, rate, 0.7, color=colour)
        end = rate
        if row["ci95"] is not None:
            low, high = max(row["ci95"][0], 0.0), min(row["ci95"][1], longest)
            axes.plot([low, high], [place, place], color=look.LATE, linewidth=2)
            end = max(rate, high)
            if high < row["ci95"][1]:  # an arrow: it goes on
                axes.plot([high], [place], color=look.LATE, marker=">", markersize=6)
        ratio = "" if row["ratio"] is None else f"  {row['ratio']:.2f}x"
        axes.text(end + 0.015 * longest, place, f"{rate:.3g}{ratio}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["policy"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * longest)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_title(f"{cell['scenario']} · {cell['engine']}")


def draw_capacity(document: Mapping[str, Any], path: Path) -> None:
    """Draw a capacity table into a file.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.capacity.capacity_document`.
    path : Path
        Its ending chooses the format.
    """
    from matplotlib.patches import Patch

    cells = document["cells"]
    columns = min(_COLUMNS, len(cells))
    lines = math.ceil(len(cells) / columns)
    tallest = max(len(cell["rows"]) for cell in cells)
    figure = look.new_figure(max(7.0, 4.6 * columns), lines * (0.7 + 0.27 * tallest) + 1.5)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, cell in zip(panels, cells, strict=False):
        _draw_cell(axes, cell, document["baselines"])
    for axes in panels[len(cells) :]:
        axes.set_visible(False)
    figure.supxlabel("requests/s per GPU, and ratio to the best of vLLM and Sarathi-Serve", fontsize=9)
    colours = ((_OURS, look.ATTAINED), ("vLLM, Sarathi", look.PREFILL), ("others", look.DECODE))
    handles: list[Any] = [Patch(color=colour, label=label) for label, colour in colours]
    figure.legend(handles=handles, loc="upper right", ncols=3, handlelength=1.2, columnspacing=1.2)
    seeds = document["seeds"]
    subtitle = (
        f"{document['duration_s']:g} s of arrivals · {seeds} seed{'s' if seeds > 1 else ''}"
        f"{', lines are 95 % intervals' if seeds > 1 else ''} · lengths {document['lengths']}"
    )
    look.heading(figure, f"Capacity at {100 * document['target']:.0f} % attainment", subtitle)
    look.save(figure, path)
