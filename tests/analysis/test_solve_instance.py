"""Combining methods: best schedule, least bound, and roundings that never cut off an optimum."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt import Batch, Instance, Request, Schedule, SloClass, Stage, engine_named
from slo_opt.analysis.solve import SERVABLE, UnsoundBoundError, servable_value, sharpened, solve_instance
from slo_opt.domain.errors import InvalidInputError
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination
from slo_opt.solvers.registry import schedule_solver


def instance_of(*weights: float, arrival_s: float = 0.0) -> Instance:
    """Requests of 100 + 1 tokens, one class per weight; any one at a time is attained."""
    classes = {f"w{weight}": SloClass(f"w{weight}", tpot_ms=100, ttft_ms=60, weight=weight) for weight in set(weights)}
    requests = tuple(
        Request(f"r{i}", arrival_s + i, (Stage(100, 1, f"w{weight}"),)) for i, weight in enumerate(weights)
    )
    return Instance("hand", requests, classes, engine_named("opt-6.7b-a100"))


class Serving:
    """A solver that serves given requests at their arrival, and claims given bounds."""

    def __init__(self, *served: int, dual: float | None = None, termination: Termination = Termination.OTHER_LIMIT):
        self.name = "serving"
        self.served, self.dual, self.termination = served, dual, termination
        self.config: SolverConfig | None = None

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        self.config = config
        batches = [Batch(instance.requests[i].arrival_s, (i,), (100,)) for i in self.served]
        schedule = Schedule.from_batches(batches, self.served) if self.served else None
        return ScheduleResult(self.termination, schedule, ObjectiveBounds(dual=self.dual), SolveStats(0.0, {}))


def run(instance: Instance, config: SolverConfig | None = None, **solvers: Serving):
    return solve_instance(instance, tuple(solvers), config or SolverConfig(), solvers.__getitem__)


def test_best_schedule_and_least_bound_win():
    report = run(instance_of(1, 1, 1, 1), a=Serving(0), b=Serving(0, 2, dual=3.99), c=Serving(1), d=Serving(dual=3.2))
    assert (report.attained, report.value, report.bound, report.bound_by) == (2, 2.0, 3.0, "b")
    assert report.gap == pytest.approx(1 / 3)
    assert [item.method for item in report.methods] == ["a", "b", "c", "d"]
    assert report.methods[3].bound == 3.2


def test_optimal_when_value_and_bound_meet():
    report = run(instance_of(1, 1), a=Serving(0, 1))
    assert (report.status, report.gap, report.bound_by) == (Termination.OPTIMAL, 0.0, SERVABLE)


def test_time_limit_of_a_method_is_the_status_while_a_gap_is_open():
    report = run(instance_of(1, 1), a=Serving(0, termination=Termination.TIME_LIMIT))
    assert report.status is Termination.TIME_LIMIT


def test_unsound_bound_is_an_error():
    with pytest.raises(UnsoundBoundError, match="'b'"):
        run(instance_of(1, 1), a=Serving(0, 1), b=Serving(dual=1.5))


def test_unservable_requests_lower_the_bound():
    instance = instance_of(1, 1)
    hopeless = Request("long", 5.0, (Stage(5_000, 1, "w1"),))
    assert servable_value(instance.with_requests((*instance.requests, hopeless))) == 2


def test_weights_count_in_value_not_in_attained():
    report = run(instance_of(5, 1, 1), a=Serving(0), b=Serving(1, 2))
    assert (report.attained, report.value) == (1, 5.0)


def test_best_effort_is_neither_offered_nor_attained():
    classes = {
        "std": SloClass("std", tpot_ms=100, ttft_ms=60),
        "free": SloClass("free", tpot_ms=100, ttft_ms=60, best_effort=True),
    }
    requests = (Request("a", 0, (Stage(100, 1, "std"),)), Request("b", 1, (Stage(100, 1, "free"),)))
    instance = Instance("hand", requests, classes, engine_named("opt-6.7b-a100"))
    report = run(instance, a=Serving(0, 1))
    assert (report.offered, report.admitted, report.attained, report.bound) == (1, 1, 1, 1.0)
    assert [row.name for row in report.classes] == ["std"]


def test_unknown_method():
    with pytest.raises(InvalidInputError, match="did you mean 'search'"):
        solve_instance(instance_of(1), ("serch",), SolverConfig())


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 0.5, 4.5, 6.0]), min_size=1, max_size=6), st.data())
def test_sharpened_never_cuts_off_an_attainable_value(weights: list[float], data: st.DataObject):
    instance = instance_of(*weights)
    attained = data.draw(st.lists(st.sampled_from(range(len(weights))), unique=True))
    value = math.fsum(weights[i] for i in attained)
    noise = data.draw(st.floats(-1e-7, 3.0))
    assert sharpened(value + noise, instance) >= value - 1e-9
    assert sharpened(value + noise, instance) <= max(value + noise, value) + 1e-5


def test_sharpened_by_unit_weights_and_by_common_divisors():
    assert sharpened(3.97, instance_of(1, 1, 1, 1)) == 3
    assert sharpened(2.9999999, instance_of(1, 1, 1)) == 3
    assert sharpened(7.9, instance_of(2, 4, 6)) == 6
    assert sharpened(1.74, instance_of(0.5, 1.5)) == 1.5
    odd = instance_of(0.1, 1 / 3)
    assert sharpened(0.4, odd) == 0.4
    assert Fraction(0.1).denominator > 1e15  # no common step worth rounding to


class Clock:
    """Stands still but for what is added to it."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("slo_opt.analysis.solve.time", clock)
    return clock


def test_relaxations_run_beside_the_planners_which_share_the_time(clock: Clock):
    class Slow(Serving):
        def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
            clock.now_s += 3.0
            return super().solve(instance, config)

    first, second, bounding = Slow(0), Slow(0), Serving(dual=2.0)
    run(instance_of(1, 1), SolverConfig(time_limit_s=10.0), search=first, dp=second, highs=bounding)
    assert bounding.config is not None
    assert first.config is not None
    assert second.config is not None
    assert bounding.config.time_limit_s == 10.0
    assert first.config.time_limit_s == 5.0
    assert second.config.time_limit_s == 7.0


def test_a_planner_that_is_interrupted_stops_the_relaxations():
    class Interrupted(Serving):
        def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
            return replace(super().solve(instance, config), termination=Termination.INTERRUPTED)

    class Waiting(Serving):
        def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
            assert config.stop is not None
            assert config.stop.wait(60)
            return super().solve(instance, config)

    report = run(instance_of(1, 1), SolverConfig(), search=Interrupted(0), highs=Waiting(dual=2.0))
    assert (report.attained, report.bound) == (1, 2.0)


def test_compilation_is_no_part_of_the_time_limit(clock: Clock):
    class Compiling(Serving):
        def prepare(self) -> None:
            clock.now_s += 1000.0

    solver = Compiling(0, 1)
    report = run(instance_of(1, 1), SolverConfig(time_limit_s=10.0), search=solver)
    assert solver.config is not None
    assert solver.config.time_limit_s == 10.0
    assert report.wall_s == 0.0


@pytest.mark.parametrize("name", ["search", "dp"])
def test_planners_can_be_prepared(name: str):
    schedule_solver(name).prepare()
