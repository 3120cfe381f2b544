"""Attained against bound: each method's value and proof, and each SLO class."""

from pathlib import Path
from typing import TYPE_CHECKING

from slo_opt.analysis.solve import SolveReport, gap_of
from slo_opt.report import figure as look
from slo_opt.report.timeline import subtitle_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CLASSES = 14


def _draw_methods(axes: "Axes", report: SolveReport) -> None:
    """A bar per schedule, a line per bound, and the strip between the best of both."""
    offered = report.offered_value
    axes.axvspan(report.bound, offered, color=look.PALE, linewidth=0, label="proved out of reach")
    if report.value < report.bound and report.schedule is not None:
        axes.axvspan(report.value, report.bound, color=look.LATE, alpha=0.35, linewidth=0, label="gap: unknown")
    plans = [method for method in report.methods if method.value is not None]
    for row, method in enumerate(plans):
        assert method.value is not None
        axes.barh(row, method.value, height=0.55, color=look.ATTAINED, label="attained" if row == 0 else None)
        gap = 100 * gap_of(method.value, report.bound)
        text = f"{method.value:,.6g}   gap {gap:.2f} %"
        axes.text(method.value - 0.01 * offered, row, text, ha="right", va="center", color="white", fontweight="bold")
    axes.axvline(report.bound, color=look.INK, linewidth=2)
    axes.annotate(
        f"bound {report.bound:,.6g} ({report.bound_by})",
        (report.bound, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontweight="bold",
    )
    axes.set_yticks(range(len(plans)), [method.method for method in plans])
    axes.set_ylim(-0.5, max(len(plans), 1) - 0.1)
    axes.set_xlim(0, offered * 1.005 or 1.0)
    axes.grid(visible=False)
    axes.set_title("Value attained, and what is proved")
    axes.set_xlabel(f"value (offered {offered:,.6g})")
    look.legend_above(axes, 3)


def _draw_classes(axes: "Axes", report: SolveReport) -> None:
    """Attained, admitted but late, and declined requests of each class."""
    from matplotlib.patches import Patch

    rows = sorted(report.classes, key=lambda row: -row.offered)[:MAX_CLASSES]
    for place, row in enumerate(rows):
        left = 0.0
        parts = (row.attained, row.admitted - row.attained, row.offered - row.admitted)
        for part, colour in zip(parts, (look.ATTAINED, look.LATE, look.DECLINED), strict=True):
            axes.barh(place, 100 * part / row.offered, 0.7, left, color=colour)
            left += 100 * part / row.offered
        share = f"{100 * row.attained / row.offered:.1f} %  ({row.attained:,} of {row.offered:,})"
        axes.text(1.0, place, share, va="center", color="white", fontweight="bold", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    more = f" ({len(report.classes) - len(rows)} smaller ones left out)" if len(rows) < len(report.classes) else ""
    axes.set_title(f"SLO classes{more}")
    axes.set_xlabel("% of offered")
    colours = (("attained", look.ATTAINED), ("admitted, late", look.LATE), ("declined", look.DECLINED))
    look.legend_above(axes, 3, [Patch(color=colour, label=label) for label, colour in colours])


def draw_bounds(report: SolveReport, path: Path) -> None:
    """Draw value against bound into a file.

    Parameters
    ----------
    report : SolveReport
        Of any solve.
    path : Path
        Its ending chooses the format.
    """
    plans = max(1, sum(method.value is not None for method in report.methods))
    classes = max(1, min(len(report.classes), MAX_CLASSES))
    heights = [0.9 + 0.5 * plans, 0.8 + 0.3 * classes]
    figure = look.new_figure(9.0, sum(heights) + 1.4)
    top, bottom = figure.subplots(2, 1, height_ratios=[0.3 + 0.5 * plans, 0.1 + 0.3 * classes])
    _draw_methods(top, report)
    _draw_classes(bottom, report)
    look.heading(figure, report.instance.name, subtitle_of(report))
    look.save(figure, path)
