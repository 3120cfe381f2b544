"""The fleet over time: what each period is proved to need, and the fleets that never change, proved and simulated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slo_opt.report import figure as look
from slo_opt.report.fleet_heading import plan_heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "slo-opt"
_LINES = (look.DECLINED, look.LATE, look.DECODE, look.MUTED)


def _draw_rate(axes: "Axes", document: Mapping[str, Any]) -> None:
    """Requests a second in each period."""
    over, period_s = document["over_time"], document["period_s"]
    starts = [period["start_h"] for period in over["periods"]]
    heights = [period["offered"] / period_s * _compressed(document) for period in over["periods"]]
    axes.bar(starts, heights, period_s / 3600, align="edge", color=look.DECODE, linewidth=0)
    axes.set_title("Requests under an SLO")
    axes.set_ylabel("requests / s")


def _compressed(document: Mapping[str, Any]) -> float:
    """Seconds of planned time that pass in a second of the trace."""
    day = document["source"]["day"]
    return 1.0 if day is None else 86_400 / float(day["length_s"])


def _levels(document: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The cheapest fleet of each pair that keeps the promise, as its price."""
    found: dict[str, float] = {}
    for policy in document["stresses"][0]["policies"]:
        if policy["price"] is not None:
            found[policy["pair"]] = min(policy["price"], found.get(policy["pair"], policy["price"]))
    return list(found.items())


def _draw_fleet(axes: "Axes", document: Mapping[str, Any]) -> None:
    over, hours = document["over_time"], document["period_s"] / 3600
    edges, needs = _steps(over["periods"], hours)
    axes.fill_between(edges, needs, step="post", color=look.PALE, linewidth=0)
    axes.step(edges, needs, where="post", color=look.INK, linewidth=1.6, label="proved, period by period")
    bound = document["stresses"][0]["bound"]
    if bound is not None and bound["price"] is not None:
        axes.axhline(bound["price"], color=look.INK, linewidth=2.2, linestyle="--", label="proved, never changing")
    for number, (pair, price) in enumerate(_levels(document)):
        ours = pair.startswith(_OURS)
        colour = look.ATTAINED if ours else _LINES[number % len(_LINES)]
        axes.axhline(price, color=colour, linewidth=2.0 if ours else 1.3, label=f"{pair}, never changing")
    axes.set_title("Fleet")
    axes.set_ylabel("replicas" if all(engine["price"] == 1 for engine in document["engines"]) else "price an hour")
    axes.set_xlabel("time, h")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handlelength=1.6)


def _steps(periods: Sequence[Mapping[str, Any]], hours: float) -> tuple[list[float], list[float]]:
    """Left edges and needs of all periods, those without a request included, and the end of the last."""
    edges: list[float] = []
    needs: list[float] = []
    for period in periods:
        if edges and period["start_h"] > edges[-1] + 1.5 * hours:
            edges.append(edges[-1] + hours)
            needs.append(0.0)
        edges.append(period["start_h"])
        needs.append(period["price"] or 0.0)
    return [*edges, edges[-1] + hours], [*needs, needs[-1]]


def draw_fleet(document: Mapping[str, Any], path: Path) -> None:
    """Draw a plan that has periods into a file.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.fleet_plan.plan_document`; its ``over_time`` is not None.
    path : Path
        Its ending chooses the format.
    """
    figure = look.new_figure(10.0, 6.2)
    rate, fleet = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
    _draw_rate(rate, document)
    _draw_fleet(fleet, document)
    fleet.set_xlim(0, document["over_time"]["hours"])
    plan_heading(figure, document, f"score rule {document['score_rule']}")
    look.save(figure, path)
