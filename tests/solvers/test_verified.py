"""The loop around inexact backends: wrong sets are forbidden, wrong verdicts are not believed."""

import signal
import threading
from collections.abc import Callable

import pytest
from hand_problems import MS, problem

from slo_opt.solvers.interface import ObjectiveBounds, SolverConfig, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.verified import MAX_ROUNDS, Attempt, AttemptRun, SecondsLeft, solve_verified

# Three of which any two fit.
THREE = problem([1000] * 3, [MS // 2] * 3, value=[3, 2, 2])


def scripted(*attempts: Attempt) -> tuple[AttemptRun, list[list[tuple[int, ...]]]]:
    """A backend that says these things one after the other, and the sets it was told to exclude."""
    asked: list[list[tuple[int, ...]]] = []

    def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
        asked.append(list(excluded))
        return attempts[len(asked) - 1]

    return attempt, asked


def test_a_set_that_fails_is_excluded() -> None:
    attempt, asked = scripted(
        Attempt(Termination.OPTIMAL, (0, 1, 2), 7.0, {"nodes": 2.0}),
        Attempt(Termination.OPTIMAL, (2, 0), 5.0000001, {"nodes": 3.0}),
    )
    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert asked == [[], [(0, 1, 2)]]
    assert result.accepted == (0, 2)
    assert result.termination is Termination.OPTIMAL
    assert result.bounds == ObjectiveBounds(5.0, 5.0)
    assert result.stats.detail == {"rounds": 2.0, "nodes": 5.0}


def test_nothing_better_left_proves_the_best() -> None:
    attempt, _ = scripted(
        Attempt(Termination.OPTIMAL, (0, 1, 2), 7.0),
        Attempt(Termination.INFEASIBLE, None, None),
    )
    result = solve_verified(problem([1000], [MS + 1]), SolverConfig(), {}, attempt)
    assert (result.termination, result.accepted) == (Termination.OPTIMAL, ())


def test_infeasible_is_not_believed_where_the_mandatory_ones_fit() -> None:
    attempt, _ = scripted(Attempt(Termination.INFEASIBLE, None, None))
    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert result.termination is Termination.ERROR
    assert result.accepted == ()


def test_optimal_is_not_believed_below_its_own_bound() -> None:
    attempt, _ = scripted(Attempt(Termination.OPTIMAL, (1, 2), 5.0))
    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert result.termination is Termination.OTHER_LIMIT
    assert result.bounds == ObjectiveBounds(4.0, 5.0)


def test_a_limit_keeps_bound_and_best() -> None:
    attempt, _ = scripted(Attempt(Termination.TIME_LIMIT, (1,), 6.4))
    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert (result.termination, result.accepted) == (Termination.TIME_LIMIT, (1,))
    assert result.bounds == ObjectiveBounds(2.0, 6.0)


@pytest.mark.parametrize("dual", [None, float("inf")])
def test_what_is_not_proved_falls_back_on_the_sum_of_values(dual: float | None) -> None:
    attempt, _ = scripted(Attempt(Termination.TIME_LIMIT, None, dual))
    assert solve_verified(THREE, SolverConfig(), {}, attempt).bounds == ObjectiveBounds(0.0, 7.0)


def test_rounds_are_limited() -> None:
    attempt, asked = scripted(*[Attempt(Termination.OPTIMAL, (0, 1, 2), 7.0)] * (MAX_ROUNDS + 5))
    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert result.termination is Termination.OTHER_LIMIT
    assert len(asked) == MAX_ROUNDS + 1


def test_ctrl_c_while_the_model_is_built() -> None:
    def attempt(excluded: list[tuple[int, ...]], left_s: SecondsLeft) -> Attempt:
        raise KeyboardInterrupt

    result = solve_verified(THREE, SolverConfig(), {}, attempt)
    assert (result.termination, result.accepted) == (Termination.INTERRUPTED, ())


def interrupting(times: int) -> Callable[[float], None]:
    """Presses Ctrl-C as often as that."""
    left = [times]

    def tick(gone_s: float) -> None:
        if left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)

    return tick


def test_first_ctrl_c_asks_to_stop() -> None:
    asked = threading.Event()

    def work() -> str:
        return "stopped" if asked.wait(30) else "too late"

    assert run_stoppable(work, asked.set, interrupting(1)) == ("stopped", True)


def test_second_ctrl_c_gives_up() -> None:
    release = threading.Event()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stoppable(lambda: release.wait(30), lambda: None, interrupting(2))
    finally:
        release.set()


def test_errors_of_the_solver_are_raised_here() -> None:
    def work() -> None:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        run_stoppable(work, lambda: None)
