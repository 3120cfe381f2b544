"""The least fleet that no proof excludes: the relaxation with the fleet as a variable, then cuts at whole fleets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slo_opt.domain.instance import Instance
from slo_opt.formulations.fleet_cuts import TOLERANCE, FleetCut, FleetPart, cheapest_fleet
from slo_opt.formulations.fleet_highs import FleetModel, FleetTarget
from slo_opt.formulations.fleet_work import work_cuts
from slo_opt.formulations.sparse_model import FloatArray, ModelArrays, row_multipliers
from slo_opt.solvers.fluid import FluidHighsSolver
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.timed_highs import TimedHighs
from slo_opt.solvers.versions import require

_NEAR = 0.02  # of a fleet: how little of it may be above what is proved for integrality to have a chance
_ROUNDING = 1e-6  # of a replica, in what the relaxation with the fleet as a variable says
# The fleet as a variable is in all rows of engine time: in large programs interior points pay for that column with more
# than the second and third solve at whole fleets that it would save.
_MOST_ROWS = 8000


@dataclass(frozen=True, slots=True)
class FleetBound:
    """Outcome of `least_fleet`.

    Parameters
    ----------
    counts : tuple of int or None
        Replicas by engine type of the cheapest fleet that is not excluded: every cheaper one is proved to be too small.
        None: so is every fleet within the limits.
    price : float or None
        Of it.
    work_counts : tuple of int or None
        The same by the cuts that need no solver.
    fraction : float or None
        Least price that is not excluded if counts need not be whole: how near the next smaller fleet is.
    part : FleetPart
        The cuts, for fleets that serve other requests as well.
    termination : Termination
        ``optimal``: the relaxation attains the targets with `counts`, so that it proves no more. Otherwise more time
        might.
    by : str
        What excludes the next smaller fleet: ``work``, ``relaxation`` or ``integrality``.
    solves : int
        Relaxations solved.
    wall_s : float
        Seconds.
    versions : dict of str to str
        Solver libraries.
    """

    counts: tuple[int, ...] | None
    price: float | None
    work_counts: tuple[int, ...] | None
    fraction: float | None
    part: FleetPart
    termination: Termination
    by: str
    solves: int
    wall_s: float
    versions: dict[str, str]


class _Search:
    """One search: what is proved so far."""

    def __init__(
        self,
        instances: Sequence[Instance],
        targets: Sequence[FleetTarget],
        prices: Sequence[float],
        limits: Sequence[int],
        timed: TimedHighs,
    ) -> None:
        self.instances, self.targets = tuple(instances), tuple(targets)
        self.prices, self.limits, self.timed = tuple(prices), tuple(limits), timed
        self.needed = sum(target.needed for target in targets)
        self.relaxed: float | None = None
        self.settled = False
        self.by = "work"
        self.solves = 0
        self.part = FleetPart(math.inf, work_cuts(instances, self.needed, prices))

    def cheapest(self) -> tuple[int, ...] | None:
        """The cheapest fleet that is not excluded yet."""
        return cheapest_fleet((self.part,), self.needed, self.prices, self.limits)

    def run(self) -> tuple[int, ...] | None:
        """All that pays; the cheapest fleet left."""
        self.timed.report("fluid relaxation of the fleet")
        model = FleetModel(self.instances, self.targets)
        if len(self.targets) == 1:
            servable = len(model.servable.intersection(self.targets[0].requests))
            self.part = replace(self.part, servable=float(servable))
        if len(self.prices) > 1 or model.num_rows <= _MOST_ROWS:
            found, objective = self._relax(model.price_problem(self.prices, self.limits))
            self.relaxed = None if objective is None else -objective
            self._learn(model, found, "relaxation")
        counts = self.cheapest()
        self.settled = counts is not None and self._reached(counts)
        while counts is not None and not self.settled and self.timed.left_s() > 0:
            self.timed.report(f"fluid relaxation with {sum(counts)} replicas")
            found, _ = self._relax(model.value_problem(counts))
            self._learn(model, found, "relaxation")
            left = self.cheapest()
            self.settled = left == counts and found is not None
            if left == counts and not self.settled:
                break
            counts = left
        return self._sharpen(counts) if counts is not None and self.settled else counts

    def _reached(self, counts: tuple[int, ...]) -> bool:
        """Whether the relaxation with the fleet as a variable has shown that it attains the targets with `counts`."""
        return len(counts) == 1 and self.relaxed is not None and counts[0] * self.prices[0] >= self.relaxed - _ROUNDING

    @property
    def fraction(self) -> float | None:
        """Least price that the cuts allow if counts need not be whole; of several types, as the solver found it."""
        if len(self.prices) > 1:
            return self.relaxed
        needs = [(self.needed - cut.constant) / cut.per_replica[0] for cut in self.part.cuts if cut.per_replica[0] > 0]
        return max([0.0, *needs]) * self.prices[0]

    def _relax(self, arrays: ModelArrays) -> tuple[FloatArray | None, float | None]:
        self.solves += 1
        return _relaxed(arrays, self.timed)

    def _learn(self, model: FleetModel, multipliers: FloatArray | None, by: str) -> None:
        cut = None if multipliers is None else model.cut(multipliers)
        if cut is not None:
            before = self.cheapest()
            self.part = replace(self.part, cuts=(*self.part.cuts, cut))
            self.by = by if self.cheapest() != before else self.by

    def _sharpen(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Exclude fleets that the relaxation only just lets pass, by integer programs of blocks of requests."""
        everyone = len(self.targets) == 1 and len(self.targets[0].requests) == _counted(self.instances[0])
        if len(counts) > 1 or not everyone or self.timed.config.time_limit_s is None:
            return counts
        while self.timed.left_s() > 1 and counts[0] < self.limits[0]:
            if counts[0] * (1 - _NEAR) * self.prices[0] > (self.fraction or 0.0) and self.by != "integrality":
                break
            self.timed.report(f"integer programs with {counts[0]} replicas")
            instance = replace(_unweighted(self.instances[0]), num_replicas=counts[0])
            config = replace(
                self.timed.config, time_limit_s=self.timed.left_s(), stop=self.timed.stopped, progress=None
            )
            dual = FluidHighsSolver().solve(instance, config).bounds.dual
            if dual is None or dual * (1 + 1e-9) >= self.needed - TOLERANCE:
                break
            # What fewer replicas attain, more do: this holds below as well, and beyond by the cuts alone.
            counts, self.by = (counts[0] + 1,), "integrality"
        return counts


def _relaxed(arrays: ModelArrays, timed: TimedHighs) -> tuple[FloatArray | None, float | None]:
    """Row multipliers as far as the solver came, and the optimum if it was reached."""
    import highspy

    highs = arrays.to_highs()
    timed.run(highs, solver="ipm", run_crossover="off")
    multipliers = row_multipliers(highs)
    optimal = highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return (
        multipliers if len(multipliers) == len(arrays.row_lower) else None,
        -float(highs.getObjectiveValue()) if optimal else None,
    )


def _counted(instance: Instance) -> int:
    return sum(instance.value_of(request) > 0 for request in instance.requests)


def _unweighted(instance: Instance) -> Instance:
    """The instance with every attained request worth 1."""
    classes = {name: replace(slo, weight=1.0) for name, slo in instance.slo_classes.items()}
    return replace(instance, slo_classes=classes)


def least_fleet(
    instances: Sequence[Instance],
    targets: Sequence[FleetTarget],
    prices: Sequence[float],
    limits: Sequence[int],
    config: SolverConfig,
) -> FleetBound:
    """Prove how many replicas, or which price of them, the targets need at least.

    Parameters
    ----------
    instances : sequence of Instance
        The same requests on each engine type, in the same order.
    targets : sequence of FleetTarget
        What is promised; each can be met by enough replicas.
    prices : sequence of float
        Of one replica of each type (> 0).
    limits : sequence of int
        Most replicas of each type that are thought of.
    config : SolverConfig
        Time left after the relaxation goes to integrality, with one type, one target and a limit.

    Raises
    ------
    SolverNotAvailableError
        highspy is missing or a version that gives wrong answers.

    References
    ----------
    formulations/README.md, least fleet.
    """
    versions = require("highspy")
    timed = TimedHighs(config)
    search = _Search(instances, targets, prices, limits, timed)
    by_work = search.cheapest()
    counts, stopped = run_stoppable(search.run, timed.stop, asked=config.stop)
    termination = Termination.OPTIMAL if search.settled or counts is None else Termination.TIME_LIMIT
    return FleetBound(
        counts=counts,
        price=None if counts is None else math.fsum(p * n for p, n in zip(prices, counts, strict=True)),
        work_counts=by_work,
        fraction=search.fraction,
        part=search.part,
        termination=Termination.INTERRUPTED if stopped else termination,
        by=search.by,
        solves=search.solves,
        wall_s=timed.wall_s,
        versions=versions,
    )


def fleet_cut(
    instances: Sequence[Instance], target: FleetTarget, counts: Sequence[int], config: SolverConfig
) -> FleetCut | None:
    """What the relaxation with a given fleet proves of every fleet; None if the limit came first."""
    require("highspy")
    timed = TimedHighs(config)

    def solve() -> FleetCut | None:
        model = FleetModel(instances, (target,))
        found, _ = _relaxed(model.value_problem(counts), timed)
        return None if found is None else model.cut(found)

    return run_stoppable(solve, timed.stop, asked=config.stop)[0]
