"""The certified bound on a whole trace: the fluid relaxation (level 3) through HiGHS, tightened block by block."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid, choose_grid
from slo_opt.formulations.fluid_highs import FluidModel, build_fluid
from slo_opt.formulations.sparse_model import FloatArray, row_multipliers
from slo_opt.solvers.fluid_blocks import Decomposition, cut_blocks
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.timed_highs import TimedHighs
from slo_opt.solvers.versions import require

TARGET = 16  # requests of the first blocks, about: larger ones bound tighter and take longer
_MANY = 4  # blocks from which their slots are coarser: integrality gains more than fine slots, if there is time for it
_COARSER = 2.0
_TOLERANCE = 1e-6  # of what branch and bound proves in floating point


@dataclass(slots=True)
class _Run(TimedHighs):
    """One solve."""

    solved: bool = False  # the last integer program, to its end


class FluidHighsSolver:
    """Upper bound on the value of any non-speculative schedule of a trace; gives no schedule.

    First the linear relaxation, whose bound rests on its row multipliers alone (weak duality, evaluated outside the
    solver). Then integer programs of blocks of requests on slots twice as long, coupled by prices, joined two by two
    while that pays, then on the first slots again while time is left; their bounds are those of HiGHS's branch and
    bound, widened by 1e-6.

    Parameters
    ----------
    coarser : float
        How many times as long the slots are. Above 1 the linear relaxation is all: less tight, and there sooner, where
        a trace is too long for more.

    Raises
    ------
    SolverNotAvailableError
        highspy is missing or a version that gives wrong answers.
    InvalidInputError
        `coarser` is below 1.

    References
    ----------
    formulations/README.md, level 3.
    """

    name = "highs"

    def __init__(self, coarser: float = 1.0) -> None:
        if not 1 <= coarser < math.inf:
            raise InvalidInputError(f"coarser is {coarser}; expected a factor of at least 1")
        self._coarser = coarser
        self._versions = require("highspy")

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Bound the instance.

        Parameters
        ----------
        instance : Instance
            Any trace; rounds, phases and replicas included.
        config : SolverConfig
            Without a time limit blocks are joined until one is left, which may take very long.
            `threads` blocks are solved at a time.

        Returns
        -------
        ScheduleResult
            `schedule` is None, `bounds.dual` the bound, None if the limit came before any was proved. Terminates
            ``optimal`` when the integer program of the whole trace was solved, ``other-limit`` when joining more
            blocks did not pay.
        """
        run = _Run(config)
        (dual, detail), stopped = run_stoppable(
            lambda: _bound(instance, run, self._coarser), run.stop, asked=config.stop
        )
        complete = bool(detail.pop("complete"))
        unfinished = Termination.OTHER_LIMIT if run.left_s() > 0 else Termination.TIME_LIMIT
        termination = Termination.OPTIMAL if complete else unfinished
        return ScheduleResult(
            termination=Termination.INTERRUPTED if stopped else termination,
            schedule=None,
            bounds=ObjectiveBounds(primal=None, dual=dual),
            stats=SolveStats(run.wall_s, self._versions, detail),
        )


def _bound(instance: Instance, run: _Run, coarser: float) -> tuple[float | None, dict[str, float]]:
    prefills, decodes = attainable_work(instance)
    if not prefills:
        return 0.0, {"complete": 1.0}
    run.report("fluid relaxation", None)
    grid = choose_grid(prefills, decodes, coarser)
    model = build_fluid(instance, grid)
    multipliers = _relax(model, run)
    detail = {"columns": float(len(model.arrays.cost)), "rows": float(len(model.arrays.row_lower)), "complete": 0.0}
    if multipliers is None:
        return None, detail
    best = model.arrays.safe_bound(multipliers)
    if best > (1 + _TOLERANCE) * float(model.arrays.cost.sum()):
        return None, detail  # the limit came so early that it says less than that no request counts twice
    detail["relaxation_bound"] = best
    detail["relaxation_s"] = run.wall_s
    if coarser > 1:
        return best, detail
    if len(prefills) > _MANY * TARGET and not grid.pooled:
        coarse = choose_grid(prefills, decodes, _COARSER)
        coarse_model = build_fluid(instance, coarse)
        prices = _relax(coarse_model, run)
        if prices is not None:
            best = min(best, _joined(instance, coarse, coarse_model, prices, run, detail))
        detail["complete"] = 0.0
    if run.left_s() > 0:
        best = min(best, _joined(instance, grid, model, multipliers, run, detail))
    return best, detail


def _joined(
    instance: Instance,
    grid: FluidGrid,
    model: FluidModel,
    multipliers: FloatArray,
    run: _Run,
    detail: dict[str, float],
) -> float:
    """Bound of the blocks, joined until time is up or two rounds of joins do not pay."""
    parts = Decomposition(instance, grid, model, multipliers, cut_blocks(instance, grid, model, multipliers, TARGET))
    bounds = _block_bounds(parts, range(len(parts.blocks)), run, 0.4 if len(parts.blocks) > 1 else 1.0, relax=True)
    detail["blocks"] = float(len(parts.blocks))
    detail["blocks_bound"] = math.fsum(bounds) + parts.constant
    detail["blocks_s"] = run.wall_s
    idle = 0  # rounds in a row that joined nothing
    while len(parts.blocks) > 1 and run.left_s() > 0 and idle < 2:
        count = len(parts.blocks)
        parts, bounds = _merge_pairs(parts, bounds, run, idle)
        idle = idle + 1 if len(parts.blocks) == count else 0
    detail["merged_blocks"] = float(len(parts.blocks))
    detail["complete"] = float(len(parts.blocks) == 1 and run.solved)
    return math.fsum(bounds) + parts.constant


def _relax(model: FluidModel, run: _Run) -> FloatArray | None:
    """Row multipliers of the linear relaxation; as far as the solver came, None without any."""
    highs = model.arrays.to_highs()
    run.run(highs, solver="ipm", run_crossover="off")
    multipliers = row_multipliers(highs)
    return multipliers if len(multipliers) == len(model.arrays.row_lower) else None


def _block_bounds(
    parts: Decomposition, chosen: Sequence[int], run: _Run, share: float, *, relax: bool = False
) -> list[float]:
    """Bounds of the chosen blocks' integer programs, within a share of the time left; with `relax` at least as good
    as the blocks' relaxations."""
    threads = max(1, run.config.threads)
    limited = math.isfinite(run.left_s())
    end_s = run.left_s() * (1 - share) if limited else 0.0
    done = 0

    import highspy

    def solve(b: int) -> float:
        nonlocal done
        if run.left_s() <= 0:
            return math.inf
        local, cost = parts.problem(b)
        local.arrays.cost = cost
        # Most blocks need less than their part of the time, a few much more.
        limit_s = 2 * max(0.0, run.left_s() - end_s) * threads / max(1, len(chosen) - done) if limited else math.inf
        multipliers = _relax(local, run) if relax else None
        bound = local.arrays.safe_bound(np.zeros(len(local.arrays.row_lower)) if multipliers is None else multipliers)
        highs = local.arrays.to_highs(parts.integer_columns(local))
        run.run(highs, mip_rel_gap=0.0, mip_abs_gap=0.02, time_limit=limit_s)
        done += 1
        run.report(f"integer programs of {len(parts.blocks)} blocks", done / len(chosen))
        # Never run or cancelled in presolve, HiGHS reports a dual bound of 0 that it has not proved.
        info = highs.getInfo()
        dual = -float(info.mip_dual_bound) if info.valid and not run.stopped.is_set() else math.inf
        run.solved = highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return min(bound, dual + _TOLERANCE * (1 + abs(dual))) if math.isfinite(dual) else bound

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(solve, chosen))


def _merge_pairs(parts: Decomposition, bounds: list[float], run: _Run, first: int) -> tuple[Decomposition, list[float]]:
    """Join neighbouring blocks two by two from the `first`; a join that was not solved well enough to pay is undone.

    What a block's problem prices depends only on whether anyone else touches a slot, so the bounds of the blocks that
    are not joined stay valid.
    """
    pairs = [(a, a + 1) for a in range(first, len(parts.blocks) - 1, 2)]
    joined = parts.merged(pairs)
    found = _block_bounds(joined, range(first, first + len(pairs)), run, 0.5 if len(joined.blocks) > 1 else 1.0)
    kept: list[tuple[int, int]] = []
    for pair, bound in zip(pairs, found, strict=True):
        alone = bounds[pair[0]] + bounds[pair[1]] + parts.constant
        if bound + parts.constant_if_joined(*pair) <= alone:
            kept.append(pair)
    by_pair = dict(zip(pairs, found, strict=True))
    partners = {b for _, b in kept}
    starts = {a: by_pair[a, b] for a, b in kept}
    merged = [starts.get(b, bounds[b]) for b in range(len(bounds)) if b not in partners]
    return parts.merged(kept), merged
