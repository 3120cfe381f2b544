"""From lanes to a checked result."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolveStats, Termination
from slo_opt.solvers.offline.lane import Lane

_REPLAY_PER_S = 800  # requests that the final check replays in a second


def replay_reserve(instance: Instance, limit_s: float) -> float:
    """Seconds of a time limit to spend before the final check, which is plain Python."""
    return max(limit_s / 2, limit_s - 0.5 - len(instance.requests) / _REPLAY_PER_S)


def assign(instance: Instance) -> list[list[int]]:
    """Requests to replicas: each to the one that was given least work (tokens) lately.

    Returns
    -------
    list of list of int
        Indices into the instance, ascending, one list a replica.
    """
    lanes: list[list[int]] = [[] for _ in range(instance.num_replicas)]
    load = np.zeros(instance.num_replicas)
    last_s = 0.0
    for i, request in enumerate(instance.requests):
        load *= 0.5 ** ((request.arrival_s - last_s) / 10.0)  # work is done after a while
        last_s = request.arrival_s
        lane = int(np.argmin(load))
        lanes[lane].append(i)
        load[lane] += request.prompt_tokens + request.output_tokens
    return lanes


def merge(lanes: Sequence[Lane]) -> Schedule:
    """One schedule of the best plans of all replicas, batches in order of start."""
    if not lanes:
        return Schedule.from_batches([])
    for lane in lanes:
        lane.back_to_best()
    scripts = [lane.transcript() for lane in lanes]
    start_s = np.concatenate([script[0] for script in scripts])
    replica = np.concatenate([np.full(len(script[0]), r, dtype=np.int64) for r, script in enumerate(scripts)])
    lengths = np.concatenate([np.diff(script[1]) for script in scripts])
    first = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
    order = np.argsort(start_s, kind="stable")
    offset = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    entry = np.repeat(first[order] - offset[:-1], lengths[order]) + np.arange(offset[-1])

    def entries(which: int) -> NDArray[np.int64]:
        joined: NDArray[np.int64] = np.concatenate([script[which] for script in scripts])
        return joined[entry]

    return Schedule(
        start_s=start_s[order],
        replica=replica[order],
        offset=offset,
        request=entries(2),
        tokens=entries(3),
        admitted=tuple(sorted(int(i) for lane in lanes for i in lane.attained)),
    )


def checked_result(
    instance: Instance,
    lanes: Sequence[Lane],
    termination: Termination,
    began_s: float,
    detail: dict[str, float],
) -> ScheduleResult:
    """Replay the best plans with `evaluate` and report what it says.

    Raises
    ------
    AssertionError
        The evaluator disagrees with the kernel: a bug here, never a bad input.
    """
    import numba

    schedule = merge(lanes)
    evaluation = evaluate(instance, schedule)
    attained = tuple(int(i) for i in np.flatnonzero(evaluation.attained))
    if not evaluation.legal or attained != schedule.admitted:
        first = f": {evaluation.violations[0]}" if evaluation.violations else ""
        raise AssertionError(f"the kernel and the evaluator disagree{first}")
    everyone = sum(
        instance.value_of(request) for request in instance.requests if instance.unservable_reason(request) is None
    )
    complete = evaluation.value >= everyone
    return ScheduleResult(
        termination=Termination.OPTIMAL if complete else termination,
        schedule=schedule,
        bounds=ObjectiveBounds(primal=evaluation.value, dual=everyone if complete else None),
        stats=SolveStats(time.perf_counter() - began_s, {"numba": numba.__version__}, detail),
    )
