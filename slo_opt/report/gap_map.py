"""Gap picture: a heat map of policies and loads, and attainment over load below the bound."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slo_opt.report import figure as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = (look.PREFILL, look.DECODE, look.LATE, look.DECLINED, look.MUTED, "#6b4c9a", "#8c6d31", "#d17b9f")
_MARKERS = "osD^vPX*"
_OURS = "slo-opt"


def _shares(document: Mapping[str, Any], key: str) -> list[list[float | None]]:
    """A row a policy, a column a load."""
    table = []
    for policy in document["policies"]:
        found = [[e for e in row["policies"] if e["policy"] == policy] for row in document["loads"]]
        table.append([entries[0][key] if entries else None for entries in found])
    return table


def _draw_map(axes: "Axes", document: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    bounded = document["no_bound"] is None
    shares = _shares(document, "of_bound" if bounded else "of_offered")
    colours = LinearSegmentedColormap.from_list("gap", [look.DECLINED, "#f3d9a4", look.ATTAINED])
    filled = [[float("nan") if share is None else share for share in row] for row in shares]
    axes.imshow(filled, cmap=colours, vmin=0.4, vmax=1.0, aspect="auto")
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            text = "–" if share is None else f"{100 * share:.1f} %"
            dark = share is not None and (share > 0.88 or share < 0.5)
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else look.INK, fontsize=8.5)
    axes.set_xticks(range(len(document["loads"])), [f"{row['load']:g}" for row in document["loads"]])
    axes.set_yticks(range(len(shares)), document["policies"])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("load")
    axes.set_title("Attained, % of the bound" if bounded else "Attained, % of offered")


def _draw_curves(axes: "Axes", document: Mapping[str, Any]) -> None:
    rows = document["loads"]
    loads = [row["load"] for row in rows]
    if document["no_bound"] is None:
        bounds = [100 * row["bound"] / (row["offered_value"] or 1.0) for row in rows]
        axes.fill_between(loads, bounds, 100, color=look.PALE, linewidth=0)
        axes.plot(loads, bounds, color=look.INK, linewidth=2.2, label="bound")
    for number, (policy, shares) in enumerate(zip(document["policies"], _shares(document, "of_offered"), strict=True)):
        colour = look.ATTAINED if policy == _OURS else _LINES[number % len(_LINES)]
        marker = _MARKERS[number % len(_MARKERS)]
        points = [(load, 100 * share) for load, share in zip(loads, shares, strict=True) if share is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            linewidth=2.2 if policy == _OURS else 1.3,
            linestyle="--" if number >= len(_LINES) and policy != _OURS else "-",
            marker=marker,
            markersize=4,
            label=policy,
        )
    least = min((share for row in _shares(document, "of_offered") for share in row if share is not None), default=0.0)
    axes.set_ylim(max(0.0, 100 * least - 25), 101)
    axes.set_xlabel("load")
    axes.set_ylabel("% of offered")
    axes.set_title("Attained, and what is proved out of reach")
    axes.legend(loc="lower left", ncols=2, handlelength=1.6)


def draw_gap(document: Mapping[str, Any], path: Path) -> None:
    """Draw a gap table into a file.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.gap_table.gap_document`; complete.
    path : Path
        Its ending chooses the format.
    """
    rows, columns = len(document["policies"]), len(document["loads"])
    figure = look.new_figure(max(9.5, 5.6 + 0.85 * columns), max(4.2, 1.9 + 0.36 * rows))
    left, right = figure.subplots(1, 2, width_ratios=[0.85 * columns + 0.4, 5.0])
    _draw_map(left, document)
    _draw_curves(right, document)
    look.heading(figure, f"Information gap · {document['name']}", _subtitle(document))
    look.save(figure, path)


def _subtitle(document: Mapping[str, Any]) -> str:
    rate = next((row["rate"] / row["load"] for row in document["loads"] if row["rate"] is not None), None)
    unit = "1 is the trace as it is" if rate is None else f"1 is {rate:.3g} requests/s"
    settings = "best static setting at each load" if document["all_settings"] else "default settings"
    return f"load {unit} · {settings} · lengths {document['lengths']}"
