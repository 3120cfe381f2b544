"""The token timeline of a plan: outcome by arrival, use of the engine, and the requests of its hardest moment."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slo_opt.analysis.solve import SolveReport
from slo_opt.analysis.timeline import Timeline, unroll
from slo_opt.domain.evaluate import Evaluation
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.domain.windows import stage_windows
from slo_opt.report import figure as look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

NUM_BINS = 150
MAX_ROWS = 36

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Focus:
    """Requests shown one by one, and the span of time they take."""

    requests: tuple[int, ...]
    start_s: float
    end_s: float


def focus_of(instance: Instance, timeline: Timeline, evaluation: Evaluation) -> _Focus:
    """The consecutive requests under an SLO with most declined ones among them in the least time."""
    offered = np.flatnonzero(evaluation.counted) if evaluation.counted.any() else np.arange(len(instance.requests))
    arrival_s = np.array([instance.requests[i].arrival_s for i in offered])
    count = min(MAX_ROWS, len(offered))
    missed = np.concatenate([[0], np.cumsum(~evaluation.attained[offered])])
    missed_in = missed[count:] - missed[:-count]
    span_s = arrival_s[count - 1 :] - arrival_s[: len(offered) - count + 1]
    first = int(np.argmax((missed_in + 1e-3) / np.sqrt(span_s + 1e-3)))
    chosen = tuple(offered[first : first + count].tolist())
    # Long decodes and lax deadlines run out of the picture: they must not squeeze the moment of the decisions.
    start_s = float(arrival_s[first])
    due_s = float(np.quantile([stage_windows(instance, instance.requests[i])[0].first_due_s for i in chosen], 0.9))
    last_s = float(timeline.token_s[np.isin(timeline.token_request, chosen)].max(initial=due_s))
    end_s = max(float(arrival_s[first + count - 1]), min(last_s, due_s + 0.35 * (due_s - start_s)))
    return _Focus(chosen, start_s - 0.01 * (end_s - start_s), end_s + 0.01 * (end_s - start_s))


def _shade(axes: "Axes", focus: _Focus) -> None:
    axes.axvspan(focus.start_s, focus.end_s, color=look.LATE, alpha=0.18, linewidth=0, zorder=0)


def draw_outcomes(
    axes: "Axes", instance: Instance, evaluation: Evaluation, schedule: Schedule, edges_s: Floats
) -> None:
    """Requests by second of arrival: attained, admitted but late, declined."""
    arrival_s = np.array([request.arrival_s for request in instance.requests])
    admitted = np.zeros(len(arrival_s), dtype=np.bool_)
    admitted[list(schedule.admitted)] = True
    counted, attained = evaluation.counted, evaluation.attained
    parts = (
        ("attained", look.ATTAINED, attained),
        ("admitted, late", look.LATE, counted & ~attained & admitted),
        ("declined", look.DECLINED, counted & ~attained & ~admitted),
        ("best effort", look.MUTED, ~counted),
    )
    width_s = edges_s[1] - edges_s[0]
    base = np.zeros(len(edges_s) - 1)
    for label, colour, chosen in parts:
        if chosen.any():
            rate = np.histogram(arrival_s[chosen], edges_s)[0] / width_s
            axes.bar(edges_s[:-1], rate, width_s, base, align="edge", color=colour, label=label, linewidth=0)
            base += rate
    axes.set_title("Requests by time of arrival")
    axes.set_ylabel("requests / s")
    look.legend_above(axes, 4)


def busy_share(timeline: Timeline, share: Floats, edges_s: Floats, replicas: int) -> Floats:
    """Share of each bin's engine time, for batches weighted by `share`."""
    if not len(timeline.start_s):
        return np.zeros(len(edges_s) - 1)

    def worked_s(times_s: Floats) -> Floats:
        """Seconds worked up to each time: batches may overlap between replicas, so each is clipped by itself."""
        order = np.argsort(timeline.start_s)
        starts, ends = timeline.start_s[order], timeline.end_s[order]
        weight = share[order]
        rate = np.concatenate([weight, -weight])
        at_s = np.concatenate([starts, ends])
        events = np.argsort(at_s, kind="stable")
        at_s, level = at_s[events], np.cumsum(rate[events])
        total_s = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(at_s))])
        total: Floats = np.interp(times_s, at_s, total_s, left=0.0, right=float(total_s[-1]))
        return total

    used: Floats = np.diff(worked_s(edges_s)) / np.diff(edges_s) / replicas
    return used


def _draw_engine(axes: "Axes", report: SolveReport, timeline: Timeline, edges_s: Floats) -> None:
    """Share of engine time that goes to prefill and to decode, and KV blocks in use."""
    instance = report.instance
    prefill, decode = timeline.tokens_per_batch(decode=False), timeline.tokens_per_batch(decode=True)
    # A batch is paid for by what it carries: a decode token costs a batch about what a prefill token does.
    of_prefill = prefill / np.maximum(1, prefill + decode)
    first = 100 * busy_share(timeline, of_prefill, edges_s, instance.num_replicas)
    second = 100 * busy_share(timeline, 1 - of_prefill, edges_s, instance.num_replicas)
    width_s = edges_s[1] - edges_s[0]
    axes.bar(edges_s[:-1], first, width_s, align="edge", color=look.PREFILL, label="prefill", linewidth=0)
    axes.bar(edges_s[:-1], second, width_s, first, align="edge", color=look.DECODE, label="decode", linewidth=0)
    peak = np.zeros(len(edges_s) - 1)
    place = np.clip(np.searchsorted(edges_s, timeline.end_s) - 1, 0, len(peak) - 1)
    np.maximum.at(peak, place, 100 * timeline.kv_blocks / instance.engine.kv_blocks)
    axes.step(edges_s, np.append(peak, peak[-1]), where="post", color=look.LATE, linewidth=1.3, label="KV blocks, peak")
    axes.set_ylim(0, 100)
    axes.set_title("Engine busy, by kind of token, and KV memory")
    axes.set_ylabel("% in use")
    look.legend_above(axes, 3)


def _draw_requests(axes: "Axes", report: SolveReport, timeline: Timeline, focus: _Focus) -> None:
    """One row a request: waiting, prefill, decode, and the deadline of its first token."""
    instance, evaluation = report.instance, report.evaluation
    assert evaluation is not None
    duration_s = timeline.end_s - timeline.start_s
    for row, index in enumerate(focus.requests):
        request = instance.requests[index]
        window = stage_windows(instance, request)[0]
        attained = bool(evaluation.attained[index])
        entries = np.flatnonzero(timeline.entry_request == index)
        batch = timeline.entry_batch[entries]
        for decode, colour in ((False, look.PREFILL), (True, look.DECODE)):
            chosen = batch[timeline.entry_decode[entries] == decode]
            bars = list(zip(timeline.start_s[chosen].tolist(), duration_s[chosen].tolist(), strict=True))
            axes.broken_barh(bars, (row - 0.36, 0.72), facecolors=colour, linewidth=0, zorder=2)
        ends_s = timeline.end_s[batch[-1]] if len(batch) else window.first_due_s
        line = look.MUTED if attained else look.DECLINED
        axes.plot([request.arrival_s, max(ends_s, window.first_due_s)], [row, row], color=line, linewidth=0.8, zorder=1)
        axes.plot([request.arrival_s], [row], marker="o", markersize=3, color=line, zorder=3)
        axes.plot(
            [window.first_due_s] * 2,
            [row - 0.46, row + 0.46],
            color=look.ATTAINED if attained else look.DECLINED,
            linewidth=2,
            zorder=4,
        )
    axes.set_ylim(len(focus.requests) - 0.4, -0.6)
    axes.set_xlim(focus.start_s, focus.end_s)
    axes.grid(visible=False)
    axes.set_yticks(range(len(focus.requests)), [instance.requests[i].id for i in focus.requests], fontsize=6)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Requests one by one, in the shaded span")
    axes.set_xlabel("time, s")
    _request_legend(axes)


def _request_legend(axes: "Axes") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def due(colour: str, label: str) -> Line2D:
        return Line2D([], [], color=colour, linewidth=0, marker="|", markersize=9, markeredgewidth=2, label=label)

    handles: list[Artist] = [
        Line2D([], [], color=look.MUTED, marker="o", markersize=3, linewidth=0.8, label="arrival"),
        Patch(color=look.PREFILL, label="prefill"),
        Patch(color=look.DECODE, label="decode"),
        due(look.ATTAINED, "first token due, attained"),
        due(look.DECLINED, "declined or late"),
    ]
    look.legend_above(axes, 5, handles)


def subtitle_of(report: SolveReport) -> str:
    """Engine, score rule and the figures that matter."""
    instance = report.instance
    fleet = "" if instance.num_replicas == 1 else f" x {instance.num_replicas}"
    gap = "" if report.gap is None else f" · gap {100 * report.gap:.2f} %"
    value = "" if report.value == report.attained else f" · value {report.value:,.6g}"
    return (
        f"{instance.engine.name}{fleet} · score rule {instance.score_rule} · {report.attained:,} of {report.offered:,} "
        f"attained{value} · no scheduler can exceed {report.bound:,.6g}{gap}"
    )


def draw_timeline(report: SolveReport, path: Path) -> None:
    """Draw the plan of a solve into a file.

    Parameters
    ----------
    report : SolveReport
        With a schedule.
    path : Path
        Its ending chooses the format.
    """
    assert report.schedule is not None
    assert report.evaluation is not None
    instance = report.instance
    timeline = unroll(instance, report.schedule)
    figure = look.new_figure(11.0, 10.0)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[2.0, 2.0, 5.0])
    last_s = max(instance.requests[-1].arrival_s, float(timeline.end_s.max(initial=0.0)), 1e-3)
    edges_s = np.linspace(0.0, last_s, NUM_BINS + 1)
    focus = focus_of(instance, timeline, report.evaluation)
    draw_outcomes(top, instance, report.evaluation, report.schedule, edges_s)
    _draw_engine(middle, report, timeline, edges_s)
    for axes in (top, middle):
        _shade(axes, focus)
        axes.set_xlim(0.0, last_s)
    _draw_requests(bottom, report, timeline, focus)
    look.heading(figure, instance.name, subtitle_of(report))
    look.save(figure, path)
