"""Level 3 with the fleet as a variable: the fewest or cheapest replicas with which the relaxation attains its targets.

One relaxation for each engine type, requests split between them, and the replicas of each type as columns. Statement
and proof: README.md here, least fleet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slo_opt.domain.instance import Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fleet_cuts import FleetCut
from slo_opt.formulations.fluid_grid import FluidGrid, choose_grid
from slo_opt.formulations.fluid_highs import build_fluid
from slo_opt.formulations.sparse_model import FloatArray, IntArray, ModelArrays, SparseModel


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """A promise: at least `needed` of these requests are attained.

    Parameters
    ----------
    requests : tuple of int
        Indices into the requests of the instance.
    needed : int
        How many.
    """

    requests: tuple[int, ...]
    needed: int


def scaled_columns(grid: FluidGrid) -> IntArray:
    """Columns of `build_fluid` whose upper limits grow with the fleet: batches, decode tokens and context time."""
    return np.arange(3 * grid.num_fine + grid.num_coarse)


class FleetModel:
    """The relaxations of all engine types, for any fleet.

    Parameters
    ----------
    instances : sequence of Instance
        The same requests on each engine type; their numbers of replicas are not used.
    targets : sequence of FleetTarget
        What is promised.

    Attributes
    ----------
    servable : frozenset of int
        Requests that at least one engine type can attain.
    """

    def __init__(self, instances: Sequence[Instance], targets: Sequence[FleetTarget]) -> None:
        self.targets = tuple(targets)
        self._time_columns: list[IntArray] = []
        self._time_rows: list[IntArray] = []
        model = SparseModel()
        accepts: list[dict[int, int]] = []
        for instance in instances:
            accepts.append(self._add(model, instance))
        self.servable = frozenset(request for accept in accepts for request in accept)
        self._target_rows = np.concatenate([model.rows(1, lower=0.0) for _ in self.targets])
        for row, target in zip(self._target_rows, self.targets, strict=True):
            columns = [accept[i] for accept in accepts for i in target.requests if i in accept]
            model.add(row, np.array(columns, dtype=np.int64), 1.0)
        # A request is served once, whatever share of it each type takes.
        shared = [i for i in sorted(self.servable) if sum(i in accept for accept in accepts) > 1]
        once = dict(zip(shared, model.rows(len(shared), upper=1.0).tolist(), strict=True))
        for accept in accepts:
            both = [(row, accept[i]) for i, row in once.items() if i in accept]
            model.add([row for row, _ in both], [column for _, column in both], 1.0)
        self._core = model.arrays()

    def _add(self, model: SparseModel, instance: Instance) -> dict[int, int]:
        """The relaxation of one replica of a type; its columns of accepted requests."""
        prefills, decodes = attainable_work(instance)
        if not prefills:
            self._time_columns.append(np.zeros(0, dtype=np.int64))
            self._time_rows.append(np.zeros(0, dtype=np.int64))
            return {}
        grid = choose_grid(prefills, decodes)
        fluid = build_fluid(replace(instance, num_replicas=1), grid)
        part = fluid.arrays
        columns = model.columns(len(part.cost), part.upper, part.lower)
        rows = model.rows(len(part.row_lower), part.row_lower, part.row_upper)
        model.add(rows[part.row], columns[part.column], part.value)
        self._time_columns.append(columns[scaled_columns(grid)])
        self._time_rows.append(rows[fluid.compute.ravel()])
        return {request: int(columns[column]) for request, column in fluid.accept.items()}

    @property
    def needed(self) -> int:
        """Requests promised, over all targets."""
        return sum(target.needed for target in self.targets)

    @property
    def num_rows(self) -> int:
        """Rows of the problems: they differ in columns and right sides alone."""
        return len(self._core.row_lower)

    def _sized(self, counts: Sequence[float]) -> ModelArrays:
        """The relaxations at a given fleet, without an objective."""
        core = self._core
        upper, row_upper = core.upper.copy(), core.row_upper.copy()
        for columns, rows, count in zip(self._time_columns, self._time_rows, counts, strict=True):
            upper[columns] *= count
            row_upper[rows] *= count
        return ModelArrays(core.cost, core.lower, upper, core.row_lower, row_upper, core.start, core.row, core.value)

    def value_problem(self, counts: Sequence[float]) -> ModelArrays:
        """Maximise attained requests with a given fleet; of several targets each counts up to its need."""
        alone = len(self.targets) == 1
        most = [float(len(target.requests) if alone else target.needed) for target in self.targets]
        rows = [np.array([row]) for row in self._target_rows]
        return _extended(self._sized(counts), np.ones(len(most)), most, rows, [np.array([-1.0])] * len(most))

    def price_problem(self, prices: Sequence[float], limits: Sequence[int]) -> ModelArrays:
        """Minimise the price of the fleet, counts in part allowed, with all targets met."""
        sized = self._sized(limits)
        lengths_s = [self._core.row_upper[rows] for rows in self._time_rows]
        sized.row_lower = sized.row_lower.copy()
        sized.row_lower[self._target_rows] = [target.needed for target in self.targets]
        for rows in self._time_rows:
            sized.row_upper[rows] = 0.0
        costs = -np.asarray(prices, dtype=np.float64)
        return _extended(sized, costs, limits, self._time_rows, [-length_s for length_s in lengths_s])

    def cut(self, multipliers: FloatArray) -> FleetCut | None:
        """What row multipliers of either problem prove of every fleet; None if they weigh no target.

        By weak duality alone, evaluated here: nothing is taken from the solver but the multipliers. Where there are
        several targets, attained requests are weighted so that the promise weighs as many as it counts.
        """
        weights = np.maximum(-multipliers[self._target_rows], 0.0)
        promised = float(weights @ [target.needed for target in self.targets])
        if not np.isfinite(promised) or promised <= 0:
            return None
        scaled = multipliers * (self.needed / promised)
        kinds = range(len(self._time_rows))
        # Limits of columns and rows are linear in the fleet, and so is the bound with its share of rounding.
        constant = self._sized([0.0] * len(kinds)).safe_bound(scaled)
        ones = [self._sized([float(kind == other) for other in kinds]).safe_bound(scaled) for kind in kinds]
        if not np.isfinite([constant, *ones]).all():
            return None
        return FleetCut(constant, tuple(max(0.0, one - constant) for one in ones))


def _extended(
    arrays: ModelArrays,
    costs: Sequence[float] | FloatArray,
    uppers: Sequence[float],
    rows: Sequence[IntArray],
    values: Sequence[FloatArray],
) -> ModelArrays:
    """The model with columns at its end, from 0 to `uppers`."""
    lengths = [len(entries) for entries in rows]
    return ModelArrays(
        cost=np.concatenate([arrays.cost, np.asarray(costs, dtype=np.float64)]),
        lower=np.concatenate([arrays.lower, np.zeros(len(lengths))]),
        upper=np.concatenate([arrays.upper, np.asarray(uppers, dtype=np.float64)]),
        row_lower=arrays.row_lower,
        row_upper=arrays.row_upper,
        start=np.concatenate([arrays.start, arrays.start[-1] + np.cumsum(lengths)]),
        row=np.concatenate([arrays.row, *rows]),
        value=np.concatenate([arrays.value, *values]),
    )
