"""State of one replica under play, its decisions, and checkpoints of it."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from slo_opt.solvers.offline.encode import Problem

STAGE, EMITTED, COMPUTED, KNOWN = 0, 1, 2, 3
RELEASE, CLOCK, DUE = 0, 1, 2
DECODING, QUEUED, PAUSED, NEXT = 0, 1, 2, 3
CAP, WAIT, MARGIN, LEAD, CROWD = 0, 1, 2, 3, 4
LOOK_AHEAD_S = 1.0  # the longest batch: no state earlier than this before a change feels it
LIVE_MOST = 1024  # requests a checkpoint holds; a fuller state has none

# Seconds: longest batch; wait for the next arrival; margin before the last moment of the next arrival; while prefills
# are crowded, decodes due later than LEAD stay out; prefills are crowded with less slack than CROWD.
SETTINGS = np.array(
    [
        [1.0, 0.0, 0.0, 0.3, 0.05],
        [1.0, 0.0, 0.0, np.inf, 0.0],
        [1.0, 0.0, 0.0, 0.3, 0.0],
        [1.0, 0.0, 0.0, 0.3, 0.15],
        [1.0, 0.0, 0.0, 0.15, 0.02],
        [1.0, 0.0, 0.0, 1.0, 0.05],
        [1.0, 0.0, 0.0, 0.3, np.inf],
        [1.0, 0.0, 0.0, 0.15, np.inf],
        [1.0, 0.01, 0.0, np.inf, 0.0],
        [1.0, 0.03, 0.0, np.inf, 0.0],
        [1.0, 0.08, 0.0, np.inf, 0.0],
        [1.0, 0.0, 0.03, np.inf, 0.0],
        [1.0, 0.03, 0.03, np.inf, 0.0],
        [0.25, 0.0, 0.0, np.inf, 0.0],
        [0.12, 0.0, 0.0, np.inf, 0.0],
        [0.06, 0.0, 0.0, np.inf, 0.0],
        [0.25, 0.03, 0.0, np.inf, 0.0],
        [0.12, 0.03, 0.0, np.inf, 0.0],
        [1.0, 0.03, 0.0, 0.3, 0.05],
        [1.0, 0.08, 0.0, 0.3, 0.05],
        [1.0, 0.0, 0.03, 0.3, 0.05],
        [0.25, 0.0, 0.0, 0.3, 0.05],
        [0.12, 0.0, 0.0, 0.3, 0.05],
        [0.06, 0.0, 0.0, 0.3, 0.05],
    ]
)


class Plan(NamedTuple):
    """What the search decides.

    Parameters
    ----------
    accept : (N,) bool array
        Requests to serve; the others are not touched.
    offset_s : (N,) float array
        Added to the first-token deadline in the order of prefills.
    setting : (C,) int array
        Row of `SETTINGS` in force in each cell of time.
    """

    accept: NDArray[np.bool_]
    offset_s: NDArray[np.float64]
    setting: NDArray[np.int64]


class State(NamedTuple):
    """Requests in flight. Rows of requests that are in no list are meaningless.

    Parameters
    ----------
    counts : (N, 4) int array
        Stage, tokens emitted in it, context tokens computed, context tokens known.
    times : (N, 3) float array
        Release of the stage, its token clock, due time of the next token.
    lists : (3, N) int array
        Decoding in order of first token; queued prefills in order of priority; rounds not yet released.
    sizes : (4,) int array
        Lengths of the lists, and the next arrival.
    now_s : (1,) float array
    """

    counts: NDArray[np.int64]
    times: NDArray[np.float64]
    lists: NDArray[np.int64]
    sizes: NDArray[np.int64]
    now_s: NDArray[np.float64]


class Checkpoints(NamedTuple):
    """The first state in each cell of time; a cell without one points to the next cell that has.

    Parameters
    ----------
    now_s : (C,) float array
        Infinite where nothing is left to do.
    cell : (C,) int array
        Cell that holds the state, -1 if it could not be kept.
    sizes : (C, 4) int array
    request : (C, W) int array
        Members of the three lists, one after another.
    counts : (C, W, 4) int array
    times : (C, W, 3) float array
    cell_s : float
    """

    now_s: NDArray[np.float64]
    cell: NDArray[np.int64]
    sizes: NDArray[np.int64]
    request: NDArray[np.int32]
    counts: NDArray[np.int32]
    times: NDArray[np.float64]
    cell_s: float


def new_state(count: int) -> State:
    """Nothing has arrived."""
    return State(
        np.zeros((count, 4), dtype=np.int64),
        np.zeros((count, 3)),
        np.zeros((3, count), dtype=np.int64),
        np.zeros(4, dtype=np.int64),
        np.zeros(1),
    )


def new_plan(count: int, checkpoints: Checkpoints) -> Plan:
    """Nothing accepted, first setting throughout."""
    cells = len(checkpoints.now_s)
    return Plan(np.zeros(count, dtype=np.bool_), np.zeros(count), np.zeros(cells, dtype=np.int64))


def new_checkpoints(problem: Problem, max_cells: int = 4096) -> Checkpoints:
    """Cells from time 0 to the last arrival; the last one runs on for ever."""
    count = len(problem.arrival_s)
    end_s = float(problem.arrival_s[-1]) + 1.0
    cell_s = max(0.25, end_s / max_cells)
    cells = int(end_s / cell_s) + 2
    width = min(count, LIVE_MOST)
    return Checkpoints(
        np.full(cells, np.inf),
        np.full(cells, -1, dtype=np.int64),
        np.zeros((cells, 4), dtype=np.int64),
        np.zeros((cells, width), dtype=np.int32),
        np.zeros((cells, width, 4), dtype=np.int32),
        np.zeros((cells, width, 3)),
        cell_s,
    )


@njit(cache=True, nogil=True)
def cell_of(checkpoints: Checkpoints, now_s: float) -> int:
    """Cell of a moment."""
    return min(int(now_s / checkpoints.cell_s), len(checkpoints.now_s) - 1)


@njit(cache=True, nogil=True)
def save(checkpoints: Checkpoints, state: State, before: int, cell: int) -> None:
    """Keep the state for `cell`, and for the cells after `before` that were jumped over."""
    live = state.sizes[DECODING] + state.sizes[QUEUED] + state.sizes[PAUSED]
    fits = live <= checkpoints.request.shape[1]
    for c in range(before + 1, cell + 1):
        checkpoints.cell[c] = cell if fits else -1
        checkpoints.now_s[c] = state.now_s[0]
    if not fits:
        return
    checkpoints.sizes[cell] = state.sizes
    at = 0
    for which in range(3):
        for k in range(state.sizes[which]):
            q = state.lists[which, k]
            checkpoints.request[cell, at] = q
            for f in range(4):
                checkpoints.counts[cell, at, f] = state.counts[q, f]
            for f in range(3):
                checkpoints.times[cell, at, f] = state.times[q, f]
            at += 1


@njit(cache=True, nogil=True)
def alias(checkpoints: Checkpoints, before: int, cell: int) -> None:
    """Let the cells between the two point where `cell` points."""
    for c in range(before + 1, cell):
        checkpoints.cell[c] = checkpoints.cell[cell]
        checkpoints.now_s[c] = checkpoints.now_s[cell]


@njit(cache=True, nogil=True)
def forget_after(checkpoints: Checkpoints, cell: int) -> None:
    """Nothing happens after `cell`."""
    for c in range(cell + 1, len(checkpoints.now_s)):
        checkpoints.cell[c] = -1
        checkpoints.now_s[c] = np.inf


@njit(cache=True, nogil=True)
def restore(checkpoints: Checkpoints, state: State, cell: int) -> None:
    """Go back to the state kept for `cell`."""
    kept = checkpoints.cell[cell]
    state.now_s[0] = checkpoints.now_s[cell]
    state.sizes[:] = checkpoints.sizes[kept]
    at = 0
    for which in range(3):
        for k in range(state.sizes[which]):
            q = checkpoints.request[kept, at]
            state.lists[which, k] = q
            for f in range(4):
                state.counts[q, f] = checkpoints.counts[kept, at, f]
            for f in range(3):
                state.times[q, f] = checkpoints.times[kept, at, f]
            at += 1


@njit(cache=True, nogil=True)
def same(checkpoints: Checkpoints, state: State, cell: int) -> bool:
    """Whether the state is the one kept for `cell`, so that all that follows is the same."""
    kept = checkpoints.cell[cell]
    if kept < 0 or checkpoints.now_s[cell] != state.now_s[0]:
        return False
    for f in range(4):
        if checkpoints.sizes[kept, f] != state.sizes[f]:
            return False
    at = 0
    for which in range(3):
        for k in range(state.sizes[which]):
            q = state.lists[which, k]
            if checkpoints.request[kept, at] != q:
                return False
            for f in range(4):
                if checkpoints.counts[kept, at, f] != state.counts[q, f]:
                    return False
            for f in range(3):
                if checkpoints.times[kept, at, f] != state.times[q, f]:
                    return False
            at += 1
    return True


@njit(cache=True, nogil=True)
def latest_before(checkpoints: Checkpoints, moment_s: float) -> int:
    """Last cell whose state is kept and not later than `moment_s`; 0 if there is none."""
    cell = cell_of(checkpoints, max(0.0, moment_s))
    while cell > 0 and (checkpoints.cell[cell] < 0 or checkpoints.now_s[cell] > moment_s):
        cell -= 1
    return cell
