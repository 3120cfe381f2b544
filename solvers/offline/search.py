"""Local search for a whole trace, clairvoyant: the DP rolled, insertion, then annealing on whom to serve and when."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.solvers.interface import ScheduleResult, SolverConfig, Termination
from slo_opt.solvers.offline.assemble import assign, checked_result, replay_reserve
from slo_opt.solvers.offline.guide import relaxed_acceptance
from slo_opt.solvers.offline.lane import Lane
from slo_opt.solvers.offline.rolling import roll
from slo_opt.solvers.offline.warm import tiny_instance

_HOT, _COLD = 0.15, 0.015  # temperature, in requests, at first and at last
_GUIDE_S, _GUIDE_SHARE = 60.0, 0.4  # limit of the relaxation that guides the search: seconds, or share of the limit
_SLICE_S = 0.15  # between two looks at the clock


@dataclass(slots=True)
class SearchSolver:
    """Best schedule found for a whole trace, every length and arrival known.

    Parameters
    ----------
    iterations : int or None
        Moves to make on each replica. With it and without a time limit the result depends on the seed alone.
    hint : (N,) float array or None
        How good each request is to serve, in [0, 1]: a second start inserts the best first. None asks the fluid
        relaxation.
    default_time_s : float
        Wall-clock limit where neither the configuration nor `iterations` sets one.
    """

    iterations: int | None = None
    hint: NDArray[np.float64] | None = None
    default_time_s: float = 30.0
    name: str = "search"

    def prepare(self) -> None:
        """Compile, once a machine; the time limit of `solve` starts after it."""
        SearchSolver(iterations=2).solve(tiny_instance(), SolverConfig())

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Search until the limit; Ctrl-C ends it with the best so far.

        Replicas are searched one after another; what one declines is offered to the next.
        """
        began_s = time.perf_counter()
        limit_s = config.time_limit_s
        if limit_s is None and self.iterations is None:
            limit_s = self.default_time_s
        end_s = np.inf
        if limit_s is not None:
            end_s = began_s + replay_reserve(instance, limit_s)
        lanes: list[Lane] = []
        detail = {"moves": 0.0, "dp": 0.0, "insertion": 0.0}
        termination = Termination.OTHER_LIMIT
        try:
            declined: set[int] = set()
            shares = [own for own in assign(instance) if own]
            hint = self.hint
            if hint is None:
                if config.progress is not None:
                    config.progress("relaxation, as a guide", 0.0)
                hint = relaxed_acceptance(instance, _GUIDE_S if limit_s is None else _GUIDE_SHARE * limit_s)
            for r, own in enumerate(shares):
                now_s = time.perf_counter()
                lane = Lane(instance, sorted(declined.union(own)), config.seed + r)
                lanes.append(lane)
                lane_end_s = now_s + (end_s - now_s) / (len(shares) - r)
                with closing(self._search(instance, lane, lane_end_s, hint, detail)) as search:
                    for phrase, share in search:
                        if config.progress is not None:
                            config.progress(phrase, (r + share) / len(shares))
                declined = (declined | set(own)).difference(lane.attained.tolist())
            if time.perf_counter() >= end_s:
                termination = Termination.TIME_LIMIT
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return checked_result(instance, lanes, termination, began_s, detail)

    def _search(
        self,
        instance: Instance,
        lane: Lane,
        end_s: float,
        hint: NDArray[np.float64] | None,
        detail: dict[str, float],
    ) -> Generator[tuple[str, float], None, None]:
        """Search one lane, telling what is being done and the share done."""
        began_s = time.perf_counter()
        with closing(roll(instance, lane, end_s)) as rolling:
            for share in rolling:
                yield "rolling DP", 0.05 * share
        detail["dp"] += lane.best_value
        for share in self._insertions(lane, hint):
            yield f"insertion: {lane.best_value:g} attained", 0.05 + 0.05 * share
            if time.perf_counter() >= end_s:
                break
        detail["insertion"] += lane.best_value
        lane.back_to_best()
        done, moves = 0, 1
        while lane.best_value < lane.wanted and (self.iterations is None or done < self.iterations):
            now_s = time.perf_counter()
            if now_s >= end_s:
                break
            share = 0.0 if np.isinf(end_s) else (now_s - began_s) / (end_s - began_s)
            if self.iterations is not None:
                share = max(share, done / self.iterations)
                moves = min(moves, self.iterations - done)
            if self.iterations is not None and np.isinf(end_s):
                moves = min(64, self.iterations - done)  # slices by count, so that the temperature follows it alone
            lane.improve(moves, _HOT * (_COLD / _HOT) ** share)
            lane.harvest()
            done += moves
            detail["moves"] += moves
            spent_s = time.perf_counter() - now_s
            moves = max(1, min(1024, 2 * moves, int(moves * _SLICE_S / max(spent_s, 1e-6))))
            yield f"search: {lane.best_value:g} attained", 0.1 + 0.9 * share

    def _insertions(self, lane: Lane, hint: NDArray[np.float64] | None) -> Iterator[float]:
        """Insert the declined; with a hint also start from those it likes; the lane keeps the best."""
        yield from lane.insert(np.flatnonzero(~lane.plan.accept))
        if hint is not None:
            own = np.round(hint[lane.members], 1)
            lane.start_from(own >= 0.5)
            order = np.lexsort((np.arange(len(own)), -own))
            yield from lane.insert(order[~lane.plan.accept[order]])
