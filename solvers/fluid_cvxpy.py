"""Level 3 by CVXPY: the linear relaxation's bound, and the shadow prices of engine time and KV memory."""

import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from slo_opt.domain.instance import Instance
from slo_opt.domain.work import DecodeWork, PrefillWork, attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid, choose_grid
from slo_opt.formulations.sparse_model import FloatArray, IntArray, ModelArrays, row_multipliers
from slo_opt.solvers.highs_run import log_to_stderr
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.versions import require

MOST_ENTRIES = 60_000  # pairs of a prefill or decode and a slot of its window: what HiGHS does in about a minute


@dataclass(frozen=True, slots=True)
class ShadowPrices:
    """What a little more of a resource would add to the bound, slot by slot.

    Parameters
    ----------
    fine_s : (T + 1,) float array
        Boundaries of the fine slots.
    engine_time : (T,) float array
        Value per second of engine time in each fine slot.
    coarse_s : (C + 1,) float array
        Boundaries of the coarse slots.
    memory : (C,) float array
        Value of one more KV block on each replica throughout a coarse slot.
    bound : float
        The bound that the prices prove.
    """

    fine_s: FloatArray
    engine_time: FloatArray
    coarse_s: FloatArray
    memory: FloatArray
    bound: float


def practical_grid(prefills: list[PrefillWork], decodes: list[DecodeWork], most: int = MOST_ENTRIES) -> FluidGrid:
    """The grid of `choose_grid`, as much coarser as brings the model down to about `most` entries."""
    return choose_grid(prefills, decodes, most=most)


def compiled(program: Any) -> tuple[ModelArrays, dict[int, IntArray], dict[int, int]]:
    """The arrays that CVXPY would hand to HiGHS; rows of each constraint and first column of each variable, by id.

    CVXPY keeps inequalities in the order given; the compiled rows say ``A z <= b``.
    """
    import cvxpy

    data, _, _ = program.get_problem_data(cvxpy.HIGHS)
    matrix = data["A"].tocsc()
    matrix.sort_indices()
    ends = np.cumsum([0, *(constraint.size for constraint in program.constraints)])
    if data["dims"].zero or ends[-1] != matrix.shape[0]:
        raise RuntimeError("CVXPY compiled the relaxation to rows of another number or kind than was stated")
    rows = {c.id: np.arange(a, b) for c, a, b in zip(program.constraints, ends, ends[1:], strict=False)}
    arrays = ModelArrays(
        cost=-np.asarray(data["c"], dtype=np.float64),
        lower=np.asarray(data["lower_bounds"], dtype=np.float64),
        upper=np.asarray(data["upper_bounds"], dtype=np.float64),
        row_lower=np.full(matrix.shape[0], -np.inf),
        row_upper=np.asarray(data["b"], dtype=np.float64),
        start=matrix.indptr.astype(np.int64),
        row=matrix.indices.astype(np.int64),
        value=np.asarray(matrix.data, dtype=np.float64),
    )
    return arrays, rows, data["param_prob"].var_id_to_col


@dataclass(slots=True)
class _Relaxation:
    """One solve of the linear relaxation."""

    config: SolverConfig
    began_s: float = field(default_factory=time.perf_counter)
    highs: Any = None
    stopping: bool = False
    optimal: bool = False
    detail: dict[str, float] = field(default_factory=dict)

    def stop(self) -> None:
        """Ask HiGHS to return."""
        self.stopping = True
        if self.highs is not None:
            self.highs.cancelSolve()

    def _report(self, what: str) -> None:
        if self.config.progress is not None:
            self.config.progress(what, None)

    def _run(self) -> bool:
        """Run HiGHS in the time left; False without any."""
        import highspy

        options = {
            "solver": "ipm",
            "run_crossover": "off",
            "threads": self.config.threads,
            "random_seed": self.config.seed,
        }
        if self.config.time_limit_s is not None:
            left_s = self.config.time_limit_s - (time.perf_counter() - self.began_s)
            if left_s <= 0:
                return False
            options["time_limit"] = left_s
        log_to_stderr(self.highs, self.config)
        for name, value in options.items():
            self.highs.setOptionValue(name, value)
        self.highs.HandleUserInterrupt = True  # without it HiGHS does not look at cancelSolve
        if self.stopping:
            return False
        self.highs.run()
        self.optimal = self.highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return True

    def solve(self, instance: Instance, grid: FluidGrid | None) -> ShadowPrices | None:
        """Prices, and the bound that they prove; None if the limit came first."""
        from slo_opt.formulations.fluid_cvxpy import MS, fluid_program

        prefills, decodes = attainable_work(instance)
        if not prefills:
            self.optimal = True
            return ShadowPrices(np.zeros(1), np.zeros(0), np.zeros(1), np.zeros(0), 0.0)
        self._report("compiling the relaxation")
        slots = practical_grid(prefills, decodes) if grid is None else grid
        stated = fluid_program(instance, slots)
        arrays, rows, columns = compiled(stated.program)
        self.detail = {"columns": float(len(arrays.cost)), "rows": float(len(arrays.row_upper))}
        self.highs = arrays.to_highs()
        self._report("solving the relaxation")
        if not self._run():
            return None
        solution = self.highs.getSolution()
        multipliers = row_multipliers(self.highs)
        if len(multipliers) != len(arrays.row_upper) or not (self.optimal or np.any(multipliers)):
            return None
        price = np.maximum(multipliers, 0.0)
        first = columns[stated.batches.id]
        batches = np.asarray(solution.col_value, dtype=np.float64)[first : first + slots.num_fine]
        return ShadowPrices(
            fine_s=slots.fine_s,
            engine_time=MS * np.sum([price[rows[constraint.id]] for constraint in stated.compute], axis=0),
            coarse_s=slots.coarse_s,
            memory=price[rows[stated.memory.id]] * np.add.reduceat(batches, slots.coarse_start[:-1]),
            bound=arrays.safe_bound(multipliers),
        )


def shadow_prices(instance: Instance, config: SolverConfig, grid: FluidGrid | None = None) -> ShadowPrices | None:
    """What engine time and KV memory are worth, slot by slot; None if the time limit came first.

    Parameters
    ----------
    instance : Instance
        Any trace.
    config : SolverConfig
        Limit, seed and threads.
    grid : FluidGrid or None
        Slots; None takes `practical_grid`.

    Raises
    ------
    SolverNotAvailableError
        CVXPY or highspy is missing or a version that gives wrong answers.
    """
    require("cvxpy", "highspy")
    relaxation = _Relaxation(config)
    prices, _ = run_stoppable(lambda: relaxation.solve(instance, grid), relaxation.stop, asked=config.stop)
    return prices


class FluidCvxpySolver:
    """Upper bound on the value of any non-speculative schedule of a trace, from the linear relaxation in CVXPY.

    The second statement of level 3, which checks the first (`slo_opt.solvers.fluid`), and the source of shadow prices.
    The bound rests on the row multipliers alone: weak duality, evaluated outside the solver on the compiled arrays.

    Raises
    ------
    SolverNotAvailableError
        CVXPY or highspy is missing or a version that gives wrong answers.

    References
    ----------
    formulations/README.md, level 3.
    """

    name = "cvxpy"

    def __init__(self) -> None:
        self._versions = require("cvxpy", "highspy")

    def prepare(self) -> None:
        """Import CVXPY, so that it is not part of the time of a solve."""
        import_module("slo_opt.formulations.fluid_cvxpy")

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Bound the instance.

        Returns
        -------
        ScheduleResult
            `schedule` is None; `bounds.dual` is None if the limit came before any multipliers. ``optimal`` when the
            relaxation was solved. `stats.detail` sums up the shadow prices.
        """
        relaxation = _Relaxation(config)
        prices, stopped = run_stoppable(lambda: relaxation.solve(instance, None), relaxation.stop, asked=config.stop)
        detail = relaxation.detail
        if prices is not None and len(prices.engine_time):
            lengths_s = np.diff(prices.fine_s)
            detail |= {
                "mean_price_of_engine_second": float(prices.engine_time @ lengths_s / lengths_s.sum()),
                "peak_price_of_engine_second": float(prices.engine_time.max()),
                "price_of_kv_block": float(prices.memory.sum()),
            }
        termination = Termination.OPTIMAL if relaxation.optimal else Termination.TIME_LIMIT
        return ScheduleResult(
            termination=Termination.INTERRUPTED if stopped else termination,
            schedule=None,
            bounds=ObjectiveBounds(primal=None, dual=None if prices is None else prices.bound),
            stats=SolveStats(time.perf_counter() - relaxation.began_s, self._versions, detail),
        )
