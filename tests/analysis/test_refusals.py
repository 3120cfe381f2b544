"""What a method refuses, and what it may not claim."""

import pytest
from test_solve_instance import Serving, instance_of

from slo_opt import Instance, Request, SloClass, Stage
from slo_opt.analysis.solve import solve_instance
from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.solvers.interface import ScheduleResult, SolverConfig, Termination


class Choosy(Serving):
    """Takes no instance: says so before it runs, or while it does."""

    def __init__(self, *, early: bool):
        super().__init__(0)
        self.early = early

    def check(self, instance: Instance) -> None:
        if self.early:
            raise InvalidInputError("not this one")

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        raise InvalidInputError("not this one")


class Waiting(Serving):
    """A relaxation that ends only when it is told to."""

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        assert config.stop is not None
        assert config.stop.wait(60)
        return super().solve(instance, config)


def test_refusal_comes_before_anything_runs():
    first = Serving(0)
    solvers = {"search": first, "cpsat": Choosy(early=True)}
    with pytest.raises(InvalidInputError, match="not this one"):
        solve_instance(instance_of(1, 1), tuple(solvers), SolverConfig(), solvers.__getitem__)
    assert first.config is None


def test_failure_of_a_planner_stops_the_relaxations():
    waiting = Waiting(dual=2.0)
    solvers = {"search": Choosy(early=False), "highs": waiting}
    with pytest.raises(InvalidInputError, match="not this one"):
        solve_instance(instance_of(1, 1), tuple(solvers), SolverConfig(), solvers.__getitem__)
    assert waiting.config is not None


def test_exact_without_preemption_is_no_bound_where_preemption_helps():
    """Two requests that only fit one after the other, and a deadline that only preemption meets."""
    engine = EngineModel(
        "slow", "made up", (RooflinePiece(1e-3, 0.4),), block_size_tokens=1, kv_blocks=6, max_model_len=100
    )
    classes = {"b": SloClass("b", 5_000.0, ttft_ms=450.0), "a": SloClass("a", 5_000.0, ttft_ms=500.0)}
    requests = (Request("b", 0.0, (Stage(4, 3, "b"),)), Request("a", 0.5, (Stage(5, 1, "a"),)))
    instance = Instance("two", requests, classes, engine)
    preempting = Schedule.from_batches(
        [Batch(0.0, [0], [4]), Batch(0.5, [1], [5], preempted=[0]), Batch(1.0, [0], [5]), Batch(2.0, [0], [1])]
    )
    outcome = evaluate(instance, preempting)
    assert (outcome.legal, outcome.value) == (True, 2.0)
    report = solve_instance(instance, ("cpsat",), SolverConfig())
    assert (report.value, report.bound) == (1.0, 2.0)
    assert report.methods[0].bound is None
    assert report.methods[0].status is Termination.OTHER_LIMIT
    assert "preempt" in str(report.methods[0].message)
