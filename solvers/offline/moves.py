"""Local search on what to serve: compiled moves, each judged by playing only the time that it changes."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.offline.encode import Problem
from slo_opt.solvers.offline.play import EVER, Batch, Log, play
from slo_opt.solvers.offline.rng import below, uniform
from slo_opt.solvers.offline.state import LOOK_AHEAD_S, SETTINGS, Checkpoints, Plan, State, cell_of, latest_before

MOST = 64  # requests that one move may change, those that it makes late included
_NUM_SETTINGS = len(SETTINGS)


@njit(cache=True, nogil=True)
def settle_losses(
    p: Problem,
    plan: Plan,
    s: State,
    b: Batch,
    checkpoints: Checkpoints,
    log: Log,
    first_s: float,
    rejoin_s: float,
    max_loss: float,
    dropped: NDArray[np.int64],
) -> tuple[float, int]:
    """Play a changed plan; decline whom it makes late until nobody is; keep it if the loss is at most `max_loss`.

    Returns
    -------
    loss, count : float, int
        Value of the declined, whose names are in ``dropped[:count]``. With a loss above `max_loss` the plan has them
        back, the checkpoints are untouched, and it is for the caller to undo its change.
    """
    loss, count, record = 0.0, 0, False
    while True:
        start = latest_before(checkpoints, first_s - LOOK_AHEAD_S)
        spare = np.inf if record else max_loss - loss
        more, _ = play(p, plan, s, b, checkpoints, log, start, record, rejoin_s, spare, np.inf, EVER)
        if record:
            return loss, count
        loss += more
        late = b.sizes[1]
        if loss > max_loss or count + late > len(dropped):
            for k in range(count):
                plan.accept[dropped[k]] = True
            return np.inf, 0
        record = late == 0
        for k in range(late):
            dropped[count] = b.lost[k]
            count += 1
            plan.accept[b.lost[k]] = False
            rejoin_s = max(rejoin_s, p.arrival_s[b.lost[k]])
            first_s = min(first_s, p.arrival_s[b.lost[k]])


@njit(cache=True, nogil=True)
def _near(p: Problem, plan: Plan, rng: NDArray[np.uint64], j: int, reach: int, accepted: bool) -> int:
    """A random request near `j` in the order of arrival that is (not) accepted; -1 if none was hit upon."""
    for _ in range(8):
        i = j + below(rng, 2 * reach + 1) - reach
        if 0 <= i < len(plan.accept) and i != j and plan.accept[i] == accepted and p.value[i] > 0:
            return i
    return -1


@njit(cache=True, nogil=True)
def improve(
    p: Problem,
    plan: Plan,
    s: State,
    b: Batch,
    checkpoints: Checkpoints,
    log: Log,
    cost: NDArray[np.float64],
    rng: NDArray[np.uint64],
    moves: int,
    heat: float,
    cost_weight: float,
    reach: int,
    best: Plan,
    best_value: float,
    value: float,
) -> tuple[float, float]:
    """Simulated annealing on value less `cost_weight` times relative cost; `moves` moves at temperature `heat`.

    A move inserts a declined request and may remove accepted neighbours, insert another, change how batches are formed
    in a cell nearby, or the place of a request in the order of prefills.
    """
    count = len(plan.accept)
    dropped = np.empty(MOST, np.int64)
    flipped = np.empty(8, np.int64)
    mean_cost = cost.mean()
    for _ in range(moves):
        j = -1
        for _ in range(64):
            i = below(rng, count)
            if not plan.accept[i] and p.value[i] > 0:
                j = i
                break
        if j < 0:
            break
        flips = 1
        flipped[0] = j
        style = uniform(rng)
        removals = 0 if style < 0.35 else 1 if style < 0.75 else 2
        for _ in range(removals):
            i = _near(p, plan, rng, j, reach, True)
            other = _near(p, plan, rng, j, reach, True)
            if other >= 0 and (i < 0 or cost[other] > cost[i]):
                i = other
            if i >= 0 and not (flips > 1 and flipped[flips - 1] == i):
                flipped[flips] = i
                flips += 1
        if removals == 2:
            i = _near(p, plan, rng, j, reach, False)
            if i >= 0:
                flipped[flips] = i
                flips += 1
        first_s, rejoin_s, gain, added_cost = np.inf, 0.0, 0.0, 0.0
        for k in range(flips):
            i = flipped[k]
            sign = -1.0 if plan.accept[i] else 1.0
            plan.accept[i] = not plan.accept[i]
            gain += sign * p.value[i]
            added_cost += sign * cost[i]
            first_s = min(first_s, p.arrival_s[i])
            rejoin_s = max(rejoin_s, p.arrival_s[i])
        cell, old_setting = -1, 0
        if uniform(rng) < 0.2:
            cell = cell_of(checkpoints, max(0.0, p.arrival_s[j] + 3.0 * uniform(rng) - 1.5))
            old_setting = plan.setting[cell]
            plan.setting[cell] = below(rng, _NUM_SETTINGS)
            first_s = min(first_s, cell * checkpoints.cell_s)
            rejoin_s = max(rejoin_s, np.inf if cell + 1 == len(plan.setting) else (cell + 1) * checkpoints.cell_s)
        moved, old_offset_s = -1, 0.0
        if uniform(rng) < 0.25:
            moved = _near(p, plan, rng, j, reach, True) if uniform(rng) < 0.7 else j
            if moved >= 0:
                old_offset_s = plan.offset_s[moved]
                plan.offset_s[moved] = 0.0 if uniform(rng) < 0.3 else 1.2 * uniform(rng) - 0.6
                first_s = min(first_s, p.arrival_s[moved])
                stage = p.first_stage[moved]
                single = p.first_stage[moved + 1] == stage + 1
                queued_s = p.arrival_s[moved] + p.pause_s[stage] + p.first_limit_s[stage]
                rejoin_s = max(rejoin_s, queued_s if single else np.inf)
        spare = gain - heat * np.log(1.0 - uniform(rng)) - cost_weight * added_cost / mean_cost
        loss = np.inf
        if spare >= 0:
            loss, _ = settle_losses(p, plan, s, b, checkpoints, log, first_s, rejoin_s, spare, dropped)
        if loss < np.inf:
            value += gain - loss
            if value > best_value:
                best_value = value
                best.accept[:] = plan.accept
                best.offset_s[:] = plan.offset_s
                best.setting[:] = plan.setting
        else:
            for k in range(flips):
                plan.accept[flipped[k]] = not plan.accept[flipped[k]]
            if moved >= 0:
                plan.offset_s[moved] = old_offset_s
            if cell >= 0:
                plan.setting[cell] = old_setting
    return value, best_value
