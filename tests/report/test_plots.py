"""Plots of real solves: the figures drawn are those of the report."""

import sys
from pathlib import Path

import numpy as np
import pytest

from slo_opt import Instance, Request, Schedule, SloClass, Stage, engine_named, evaluate
from slo_opt.analysis.solve import SolveReport, solve_instance
from slo_opt.analysis.timeline import unroll
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cli"))


def solved(instance: Instance) -> SolveReport:
    from greedy import EngineTimeBound, GreedySolver

    table = {"search": GreedySolver(), "highs": EngineTimeBound()}
    return solve_instance(instance, tuple(table), SolverConfig(), table.__getitem__)


class Idle:
    """Declines everything: the plan of a trace that has nothing under an SLO."""

    name = "idle"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """The schedule without a batch."""
        bounds = ObjectiveBounds(primal=0.0)
        return ScheduleResult(Termination.OTHER_LIMIT, Schedule.from_batches([]), bounds, SolveStats(0.0, {}))


def mixed(count: int) -> Instance:
    """Two classes and best effort, arriving 50 a second."""
    classes = {
        "chat": SloClass("chat", tpot_ms=100, ttft_ms=1000),
        "code": SloClass("code", tpot_ms=50, ttft_ms=400),
        "free": SloClass("free", tpot_ms=1000, ttft_ms=60_000, best_effort=True),
    }
    names = ("chat", "code", "free")
    requests = tuple(
        Request(f"r{i}", i / 50, (Stage(100 + 37 * i % 900, 1 + i % 40, names[i % 3]),)) for i in range(count)
    )
    return Instance("mixed", requests, classes, engine_named("llama-3-8b-a100"))


@pytest.mark.parametrize(("ending", "count"), [("png", 400), ("svg", 1), ("pdf", 1)])
def test_plots_are_the_same_each_time(tmp_path: Path, ending: str, count: int):
    from slo_opt.report.bounds import draw_bounds
    from slo_opt.report.timeline import draw_timeline

    report = solved(mixed(count))
    for draw in (draw_timeline, draw_bounds):
        first, second = tmp_path / f"first.{ending}", tmp_path / f"second.{ending}"
        draw(report, first)
        draw(report, second)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 3000


def test_engine_share_adds_up_to_the_busy_time():
    from slo_opt.report.timeline import busy_share

    report = solved(mixed(200))
    assert report.schedule is not None
    assert report.evaluation is not None
    timeline = unroll(report.instance, report.schedule)
    edges_s = np.linspace(0, float(timeline.end_s.max()), 77)
    share = busy_share(timeline, np.ones(len(timeline.start_s)), edges_s, 1)
    assert share.max() <= 1 + 1e-9
    assert float((share * np.diff(edges_s)).sum()) == pytest.approx(report.evaluation.busy_s)


def test_a_plan_without_a_batch_is_drawn(tmp_path: Path):
    from dataclasses import replace

    from slo_opt.report.bounds import draw_bounds
    from slo_opt.report.timeline import draw_timeline

    report, empty = solved(mixed(20)), Schedule.from_batches([])
    report = replace(report, schedule=empty, evaluation=evaluate(report.instance, empty), attained=0, value=0.0)
    for draw in (draw_timeline, draw_bounds):
        draw(report, tmp_path / "empty.png")
        assert (tmp_path / "empty.png").stat().st_size > 3000


@pytest.mark.filterwarnings("error")
def test_a_trace_of_best_effort_alone_is_drawn(tmp_path: Path):
    from slo_opt.report.bounds import draw_bounds
    from slo_opt.report.timeline import draw_timeline

    whole = mixed(30)
    free = tuple(request for request in whole.requests if whole.slo_of(request).best_effort)
    report = solve_instance(whole.with_requests(free), ("search",), SolverConfig(), lambda name: Idle())
    for draw in (draw_timeline, draw_bounds):
        draw(report, tmp_path / "free.png")
        assert (tmp_path / "free.png").stat().st_size > 3000


def test_focus_is_where_most_are_declined():
    from slo_opt.report.timeline import MAX_ROWS, focus_of

    report = solved(mixed(400))
    assert report.schedule is not None
    assert report.evaluation is not None
    timeline = unroll(report.instance, report.schedule)
    focus = focus_of(report.instance, timeline, report.evaluation)
    missed = ~report.evaluation.attained[report.evaluation.counted]
    assert len(focus.requests) == MAX_ROWS
    assert report.evaluation.counted[list(focus.requests)].all()
    declined = int((~report.evaluation.attained[list(focus.requests)]).sum())
    most = max(int(missed[k : k + MAX_ROWS].sum()) for k in range(len(missed) - MAX_ROWS + 1))
    assert 0.9 * most <= declined <= most  # arrivals are nearly evenly spaced here
    assert focus.start_s <= report.instance.requests[focus.requests[0]].arrival_s


def test_a_bound_without_a_schedule_is_drawn(tmp_path: Path):
    from greedy import EngineTimeBound

    from slo_opt.report.bounds import draw_bounds

    report = solve_instance(mixed(30), ("highs",), SolverConfig(), lambda name: EngineTimeBound())
    draw_bounds(report, tmp_path / "bounds.png")
    assert (tmp_path / "bounds.png").stat().st_size > 3000
