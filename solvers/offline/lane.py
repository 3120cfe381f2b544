"""One replica with the requests assigned to it: start, improvement and transcript of its schedule."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.solvers.offline.encode import encode, request_cost_s
from slo_opt.solvers.offline.harvest import crossed
from slo_opt.solvers.offline.moves import MOST, improve, settle_losses
from slo_opt.solvers.offline.play import EVER, Log, new_batch, new_log, play
from slo_opt.solvers.offline.rng import new_rng
from slo_opt.solvers.offline.state import Plan, new_checkpoints, new_plan, new_state

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
        self._no_log = new_log()
        self._dropped = np.zeros(MOST, dtype=np.int64)
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
            lost = self._play(self.plan, self._no_log, record=True)
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
        """Insert requests in this order, each where it fits or for a costlier neighbour; yields the share done."""
        for k, j in enumerate(order.tolist()):
            if not self.plan.accept[j] and self.problem.value[j] > 0 and not self._change([j], [], 0.0):
                i = self._costliest_before(j)
                if i >= 0:
                    self._change([j], [i], float(self.problem.value[j] - self.problem.value[i]))
            if k % _CHUNK == 0:
                self.value = float(self.problem.value[self.plan.accept].sum())
                self._keep_if_best()
                yield k / len(order)
        self.value = float(self.problem.value[self.plan.accept].sum())
        self._keep_if_best()

    def _costliest_before(self, j: int) -> int:
        """Of those accepted that arrived last, the costliest that costs more than `j` and is not worth more; or -1."""
        before = np.flatnonzero(self.plan.accept[:j])[-NEIGHBOURS:]
        value, rate = self.problem.value, self.cost / np.maximum(self.problem.value, 1e-300)
        worse = before[(rate[before] > rate[j]) & (value[before] <= value[j])]
        return int(worse[np.argmax(self.cost[worse])]) if len(worse) else -1

    def _change(self, enter: list[int], leave: list[int], max_loss: float) -> bool:
        """Accept some and decline others if that makes no more than `max_loss` late."""
        self.plan.accept[enter], self.plan.accept[leave] = True, False
        arrival_s = self.problem.arrival_s[enter + leave]
        loss, _ = settle_losses(
            self.problem,
            self.plan,
            self.state,
            self.batch,
            self.checkpoints,
            self._no_log,
            float(arrival_s.min()),
            float(arrival_s.max()),
            max_loss,
            self._dropped,
        )
        if loss <= max_loss:
            return True
        self.plan.accept[enter], self.plan.accept[leave] = False, True
        return False

    def _play(self, plan: Plan, log: Log, record: bool = False) -> int:
        """Play from the beginning; the number of requests lost."""
        fixed = (self.problem, plan, self.state, self.batch, self.checkpoints, log)
        play(*fixed, 0, record, np.inf, np.inf, np.inf, EVER)
        return int(self.batch.sizes[1])

    def improve(self, moves: int, heat: float) -> None:
        """Search on from the current plan; see `slo_opt.solvers.offline.moves.improve`."""
        self.value, self.best_value = improve(
            self.problem,
            self.plan,
            self.state,
            self.batch,
            self.checkpoints,
            self._no_log,
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
        log = new_log(requests=len(self.members))
        self._play(self.best, log)
        self._play(self.plan, log)
        plan = crossed(self.problem, self.checkpoints, self.best, self.plan, log.empty)
        if plan is None or self._play(plan, self._no_log) > 0:
            return
        for kept, better in zip(self.best, plan, strict=True):
            kept[:] = better
        self.best_value = float(self.problem.value[self.best.accept].sum())

    def transcript(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Batches of the best plan: starts, offsets, requests (of the instance) and tokens."""
        batches, entries = 1 << 12, 1 << 16
        while True:
            log = new_log(batches, entries)
            self._play(self.best, log)
            count = int(log.sizes[0])
            if count >= 0:
                used = log.offset[count]
                return (
                    log.start_s[:count],
                    log.offset[: count + 1],
                    self.members[log.request[:used]],
                    log.tokens[:used],
                )
            batches, entries = 2 * batches, 2 * entries
