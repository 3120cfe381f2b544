"""Load and attainment of a simulated run over time: arrivals, queue, tokens, and why requests were missed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slo_opt.analysis.timeline import Timeline, unroll
from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule
from slo_opt.report import figure as look
from slo_opt.report.timeline import NUM_BINS, Floats, busy_share, draw_outcomes
from slo_opt.simulate.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARRIVAL_BINS = 50
ON_TIME, FIRST_LATE, LATER_LATE, NOT_SERVED = range(4)


def outcome_of(run: Run) -> NDArray[np.int64]:
    """Per request: on time, first token of a round late, a later token late, or never finished."""
    instance, evaluation = run.instance, run.evaluation
    slack = TTFT_TOLERANCE if instance.score_rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
    found = np.full(len(instance.requests), ON_TIME, dtype=np.int64)
    for index in np.flatnonzero(~evaluation.attained).tolist():
        request = instance.requests[index]
        if not evaluation.finished[index]:
            found[index] = NOT_SERVED
            continue
        first_late = any(
            stage.prompt_tokens
            and times.first_token_s - times.release_s > instance.ttft_limit_s(stage) * slack + TIME_TOLERANCE_S
            for stage, times in zip(request.stages, evaluation.stages[index], strict=True)
        )
        found[index] = FIRST_LATE if first_late else LATER_LATE
    return found


def _stack(axes: "Axes", edges_s: Floats, parts: list[tuple[str, str, Floats]]) -> None:
    """Bars on one another, one a bin."""
    width_s = edges_s[1] - edges_s[0]
    base = np.zeros(len(edges_s) - 1)
    for label, colour, height in parts:
        axes.bar(edges_s[:-1], height, width_s, base, align="edge", color=colour, label=label, linewidth=0)
        base = base + height


def _draw_queue(axes: "Axes", run: Run, timeline: Timeline, edges_s: Floats) -> None:
    """Mean number of requests that hold KV blocks, and that wait for them."""
    running = busy_share(timeline, run.num_running.astype(np.float64), edges_s, 1)
    waiting = busy_share(timeline, run.num_waiting.astype(np.float64), edges_s, 1)
    _stack(axes, edges_s, [("running", look.DECODE, running), ("waiting", look.LATE, waiting)])
    axes.set_title("Requests in the engine, mean over time")
    axes.set_ylabel("requests")
    look.legend_above(axes, 2)


def _draw_tokens(axes: "Axes", timeline: Timeline, edges_s: Floats) -> None:
    """Scheduled tokens a second, by kind."""
    duration_s = np.maximum(timeline.end_s - timeline.start_s, 1e-12)
    parts = []
    for label, colour, decode in (("prefill", look.PREFILL, False), ("decode", look.DECODE, True)):
        rate = busy_share(timeline, timeline.tokens_per_batch(decode=decode) / duration_s, edges_s, 1)
        parts.append((label, colour, rate))
    _stack(axes, edges_s, parts)
    axes.set_title("Tokens scheduled")
    axes.set_ylabel("tokens / s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    look.legend_above(axes, 2)


def _draw_misses(axes: "Axes", run: Run, last_s: float) -> None:
    """Of the requests under an SLO that arrive in a bin: the share on time, and what the others missed."""
    counted = run.evaluation.counted
    arrival_s = np.array([request.arrival_s for request in run.instance.requests])[counted]
    outcome = outcome_of(run)[counted]
    edges_s = np.linspace(0.0, last_s, ARRIVAL_BINS + 1)
    total = np.maximum(1, np.histogram(arrival_s, edges_s)[0])
    kinds = (
        ("on time", look.ATTAINED, ON_TIME),
        ("first token late", look.LATE, FIRST_LATE),
        ("later token late", look.PREFILL, LATER_LATE),
        ("never finished", look.DECLINED, NOT_SERVED),
    )
    parts = []
    for label, colour, kind in kinds:
        chosen = outcome == kind
        if chosen.any():
            share = 100 * np.histogram(arrival_s[chosen], edges_s)[0] / total
            parts.append((f"{label} {int(chosen.sum()):,}", colour, share))
    _stack(axes, edges_s, parts)
    axes.set_ylim(0, 100)
    axes.set_title("Attainment by time of arrival")
    axes.set_ylabel("% of offered")
    axes.set_xlabel("time, s")
    if parts:
        look.legend_above(axes, len(parts))


def subtitle_of(run: Run) -> str:
    """Policy, engine, score rule and the figures that matter."""
    instance, evaluation = run.instance, run.evaluation
    offered = int(evaluation.counted.sum())
    share = f" ({100 * evaluation.num_attained / offered:.1f} %)" if offered else ""
    return (
        f"{run.policy} on {instance.engine.name} · score rule {instance.score_rule} · {evaluation.num_attained:,} of "
        f"{offered:,} attained{share} · {run.num_preemptions:,} preempted, {len(run.rejected):,} rejected"
    )


def draw_load(run: Run, path: Path) -> None:
    """Draw a run into a file.

    Parameters
    ----------
    run : Run
        Whose schedule the checker accepts.
    path : Path
        Its ending chooses the format.
    """
    instance = run.instance
    timeline = unroll(instance, run.schedule)
    figure = look.new_figure(11.0, 10.0)
    axes = figure.subplots(4, 1, sharex=True)
    last_s = max(instance.requests[-1].arrival_s, float(timeline.end_s.max(initial=0.0)), 1e-3)
    edges_s = np.linspace(0.0, last_s, NUM_BINS + 1)
    draw_outcomes(axes[0], instance, run.evaluation, run.schedule, edges_s)
    _draw_queue(axes[1], run, timeline, edges_s)
    _draw_tokens(axes[2], timeline, edges_s)
    _draw_misses(axes[3], run, last_s)
    axes[3].set_xlim(0.0, last_s)
    figure.align_ylabels(axes)
    look.heading(figure, instance.name, subtitle_of(run))
    look.save(figure, path)
