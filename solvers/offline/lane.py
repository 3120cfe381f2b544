"""One replica with the requests assigned to it: start, improvement and transcript of its schedule."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.solvers.offline.encode import encode, request_cost_s
from slo_opt.solvers.offline.harvest import harvest
from slo_opt.solvers.offline.moves import improve, insert_all
from slo_opt.solvers.offline.play import new_batch, play, transcribe
from slo_opt.solvers.offline.rng import new_rng
from slo_opt.solvers.offline.state import new_checkpoints, new_plan, new_state

SHARING = 5.0  # requests that share a batch's overhead, for the ranking by cost
NEIGHBOURS = 30
REACH = 12
COST_WEIGHT = 0.15
_CHUNK = 64


class Lane:
    """Plays, searches and writes down the schedule of one replica.

    Parameters
    ----------
    instance : Instance
        The whole instance.
    members : sequence of int
        Its requests that this replica may serve, ascending.
    seed : int
        Of the random moves.
    """

    def __init__(self, instance: Instance, members: Sequence[int], seed: int = 0) -> None:
        self.members = np.asarray(members, dtype=np.int64)
        self.problem = encode(instance.with_requests(tuple(instance.requests[i] for i in members)))
        count = len(members)
        self.checkpoints = new_checkpoints(self.problem)
        self.plan = new_plan(count, self.checkpoints)
        self.best = new_plan(count, self.checkpoints)
        self._scratch = new_plan(count, self.checkpoints)
        self.state, self.batch = new_state(count), new_batch(count)
        self.cost = request_cost_s(self.problem, SHARING)
        self.value = self.best_value = 0.0
        self.rng = new_rng(seed)
        self._rewind()

    @property
    def wanted(self) -> float:
        """Value of all requests that some schedule could attain."""
        return float(self.problem.value.sum())

    @property
    def attained(self) -> NDArray[np.int64]:
        """Indices into the instance of the requests that the best plan attains."""
        return self.members[self.best.accept]

    def _rewind(self) -> None:
        """Decline whom the plan makes late, until nobody is; then keep checkpoints of it."""
        while True:
            play(self.problem, self.plan, self.state, self.batch, self.checkpoints, 0, True, np.inf, np.inf)
            lost = int(self.batch.sizes[1])
            if lost == 0:
                break
            self.plan.accept[self.batch.lost[:lost]] = False
        self.value = float(self.problem.value[self.plan.accept].sum())

    def _keep_if_best(self) -> None:
        if self.value >= self.best_value:
            self.best_value = self.value
            for kept, current in zip(self.best, self.plan, strict=True):
                kept[:] = current

    def back_to_best(self) -> None:
        """Make the best plan the current one."""
        for current, kept in zip(self.plan, self.best, strict=True):
            current[:] = kept
        self._rewind()
        self.best_value = 0.0
        self._keep_if_best()

    def start_from(self, accept: NDArray[np.bool_]) -> None:
        """Plan to serve these, less those who are late."""
        self.plan.accept[:] = accept & (self.problem.value > 0)
        self._rewind()
        self._keep_if_best()

    def insert(self, order: NDArray[np.int64]) -> Iterator[float]:
        """Insert requests in this order where they fit; yields the share done."""
        for at in range(0, len(order), _CHUNK):
            chunk = order[at : at + _CHUNK]
            insert_all(self.problem, self.plan, self.state, self.batch, self.checkpoints, self.cost, chunk, NEIGHBOURS)
            self.value = float(self.problem.value[self.plan.accept].sum())
            self._keep_if_best()
            yield min(1.0, (at + _CHUNK) / len(order))

    def improve(self, moves: int, heat: float) -> None:
        """Search on from the current plan; see `slo_opt.solvers.offline.moves.improve`."""
        self.value, self.best_value = improve(
            self.problem,
            self.plan,
            self.state,
            self.batch,
            self.checkpoints,
            self.cost,
            self.rng,
            moves,
            heat,
            COST_WEIGHT,
            REACH,
            self.best,
            self.best_value,
            self.value,
        )

    def harvest(self) -> None:
        """Let the best plan take over the busy periods in which the current one is better."""
        self.best_value = harvest(
            self.problem, self.best, self.plan, self.state, self.batch, self.checkpoints, self._scratch
        )

    def transcript(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Batches of the best plan: starts, offsets, requests (of the instance) and tokens."""
        batches, entries = 1 << 12, 1 << 16
        while True:
            start_s, offset = np.zeros(batches), np.zeros(batches + 1, dtype=np.int64)
            request, tokens = np.zeros(entries, dtype=np.int64), np.zeros(entries, dtype=np.int64)
            count = transcribe(
                self.problem, self.best, self.state, self.batch, self.checkpoints, start_s, offset, request, tokens
            )
            if count >= 0:
                used = offset[count]
                return start_s[:count], offset[: count + 1], self.members[request[:used]], tokens[:used]
            batches, entries = 2 * batches, 2 * entries
