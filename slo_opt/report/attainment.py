"""Attainment of policies side by side, a panel for each set of comparable runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slo_opt.analysis.compare import Group, Row
from slo_opt.report import figure as look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MAX_GROUPS = 12
_ROW_IN = 0.34


def _share(row: Row, name: str, offered: int) -> float:
    return 100 * (row.figure(name).mean or 0.0) / offered if offered else 0.0


def _draw_group(axes: "Axes", group: Group) -> None:
    """A bar a policy: attained, admitted but late, declined; a whisker where seeds differ."""
    for place, row in enumerate(group.rows):
        attained, admitted = (_share(row, name, group.offered) for name in ("attained", "admitted"))
        left = 0.0
        parts = ((attained, look.ATTAINED), (max(0.0, admitted - attained), look.LATE))
        for part, colour in (*parts, (100 - max(attained, admitted), look.DECLINED)):
            axes.barh(place, part, 0.7, left, color=colour, linewidth=0)
            left += part
        spread = row.figure("attainment")
        if spread.least is not None and spread.most is not None and spread.least < spread.most:
            axes.plot([100 * spread.least, 100 * spread.most], [place, place], color=look.INK, linewidth=1.6)
        count = f"{row.figure('attained').mean or 0.0:,.6g}"
        text = f"{attained:.1f} %  ({count} of {group.offered:,})"
        axes.text(101.0, place, text, va="center", fontweight="bold", fontsize=8.5)
    axes.set_yticks(range(len(group.rows)), [row.label for row in group.rows])
    axes.set_ylim(len(group.rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    trace = group.first.trace
    load = f" · {trace.scale:g}x rate" if trace.scale != 1 else ""
    axes.set_title(f"{group.requests.name}{load} · {group.engine.name} · {group.score_rule}")


def draw_attainment(groups: Sequence[Group], path: Path) -> None:
    """Draw groups of runs into a file.

    Parameters
    ----------
    groups : sequence of Group
        See `slo_opt.analysis.compare.compare_runs`; the first 12 are drawn.
    path : Path
        Its ending chooses the format.
    """
    from matplotlib.patches import Patch

    shown = groups[:MAX_GROUPS]
    heights = [0.75 + _ROW_IN * len(group.rows) for group in shown]
    figure = look.new_figure(9.0, sum(heights) + 1.1)
    panels = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, group in zip(panels, shown, strict=True):
        _draw_group(axes, group)
    panels[-1].set_xlabel("% of offered requests")
    colours = (("attained", look.ATTAINED), ("admitted, late", look.LATE), ("declined", look.DECLINED))
    handles: list[Artist] = [Patch(color=colour, label=label) for label, colour in colours]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    more = f", the first {MAX_GROUPS} of {len(groups)}" if len(groups) > len(shown) else ""
    look.heading(figure, "Attainment by policy", f"share of the offered requests{more}")
    look.save(figure, path)
