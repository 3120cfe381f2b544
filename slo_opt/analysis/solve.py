"""Solve an instance by several methods, and say what was reached, what is proved, and the gap between them."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from slo_opt.domain.errors import SloOptError
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.solvers.interface import ScheduleResult, ScheduleSolver, SolverConfig, Termination
from slo_opt.solvers.registry import schedule_solver

BOUND_METHODS = frozenset({"highs", "cvxpy"})  # relaxations: they prove, they do not plan
SERVABLE = "servable"  # the bound that needs no solver: the value of all requests that an idle engine could attain
_RELATIVE_TOLERANCE = 1e-6  # of a bound, for floating point in the solvers


Progress = Callable[[str, float | None], None]


class UnsoundBoundError(SloOptError):
    """A schedule is worth more than a bound that claims to be proved: a model is wrong, no figure can be trusted."""


@dataclass(frozen=True, slots=True)
class MethodReport:
    """What one method gave.

    Parameters
    ----------
    method : str
        Its name.
    status : Termination
        Why it stopped.
    attained : int or None
        Requests attained by its schedule, counted by `evaluate`; None if it gave none.
    value : float or None
        Value of those.
    bound : float or None
        Upper bound on the value of any schedule, as the method proved it; None if it proved nothing.
    wall_s : float
        Seconds it took.
    versions : dict of str to str
        Solver libraries.
    detail : dict of str to float
        The method's own counts.
    message : str or None
        What went wrong, where status is ``error``.
    """

    method: str
    status: Termination
    attained: int | None
    value: float | None
    bound: float | None
    wall_s: float
    versions: dict[str, str]
    detail: dict[str, float]
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One SLO class: requests offered, admitted by the plan, attained."""

    name: str
    offered: int
    admitted: int
    attained: int


@dataclass(frozen=True, slots=True)
class SolveReport:
    """Outcome of `solve_instance`.

    Parameters
    ----------
    instance : Instance
        What was solved.
    schedule : Schedule or None
        The best schedule found.
    evaluation : Evaluation or None
        Its replay.
    offered, admitted, attained : int
        Requests under an SLO; those that the plan promised to serve on time; those that are.
    offered_value, value : float
        Value of all offered and of the attained requests.
    bound : float
        Proved upper bound on the value of any schedule.
    bound_by : str
        The method that proved it; ``servable`` for the value of all requests that an idle engine could attain.
    status : Termination
        ``optimal`` when attained value and bound meet.
    methods : tuple of MethodReport
        One entry each.
    classes : tuple of ClassReport
        One entry each, in order of name.
    wall_s : float
        Seconds in all.
    """

    instance: Instance
    schedule: Schedule | None
    evaluation: Evaluation | None
    offered: int
    admitted: int
    attained: int
    offered_value: float
    value: float
    bound: float
    bound_by: str
    status: Termination
    methods: tuple[MethodReport, ...]
    classes: tuple[ClassReport, ...]
    wall_s: float

    @property
    def gap(self) -> float | None:
        """``(bound - value) / bound``: the share of the bound that is not reached; None without a schedule."""
        return None if self.schedule is None else gap_of(self.value, self.bound)


def gap_of(value: float, bound: float) -> float:
    """Share of the bound that is not reached; 0 where they meet."""
    return max(0.0, (bound - value) / bound) if bound > 0 else 0.0


def sharpened(bound: float, instance: Instance) -> float:
    """Round a bound down to a value that some set of requests can have.

    Every attainable value is a whole multiple of the greatest common divisor of the weights: with unit weights, an
    integer. The tolerance of the solver is added first, so that the rounding never cuts off a true optimum.
    """
    weights = {Fraction(value) for value in map(instance.value_of, instance.requests) if value > 0}
    if not weights:
        return 0.0
    denominator = math.lcm(*(weight.denominator for weight in weights))
    step = Fraction(math.gcd(*(int(weight * denominator) for weight in weights)), denominator)
    tolerance = _RELATIVE_TOLERANCE * max(1.0, abs(bound))
    if step < 100 * tolerance:
        return bound
    return float(math.floor((bound + tolerance) / float(step)) * step)


def servable_value(instance: Instance) -> float:
    """Value of all requests that nothing forbids: the bound that holds before any solver runs."""
    return math.fsum(
        instance.value_of(request) for request in instance.requests if instance.unservable_reason(request) is None
    )


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Progress that says which method is at work."""
    if progress is None:
        return None
    progress(name, None)
    return lambda phrase, done: progress(phrase if phrase.startswith(name) else f"{name}: {phrase}", done)


def _run(
    name: str, solver: ScheduleSolver, instance: Instance, config: SolverConfig
) -> tuple[MethodReport, Schedule | None, Evaluation | None]:
    """One method; its schedule is replayed here whatever the method says about it."""
    started_s = time.perf_counter()

    def failed(status: Termination, message: str) -> tuple[MethodReport, None, None]:
        wall_s = time.perf_counter() - started_s
        return MethodReport(name, status, None, None, None, wall_s, {}, {}, message), None, None

    try:
        result: ScheduleResult = solver.solve(instance, config)
    except KeyboardInterrupt:
        return failed(Termination.INTERRUPTED, "interrupted before it had anything to give back")
    except SloOptError:
        raise
    except Exception as error:  # one broken backend must not cost the others' results
        return failed(Termination.ERROR, f"{type(error).__name__}: {error}")
    schedule, evaluation = result.schedule, None
    status, message = result.termination, None
    if schedule is not None:
        try:
            evaluation = evaluate(instance, schedule)
        except KeyboardInterrupt:
            return failed(Termination.INTERRUPTED, "interrupted while its schedule was replayed")
        if not evaluation.legal:
            status, message = Termination.ERROR, f"its schedule is illegal: {evaluation.violations[0]}"
            schedule = evaluation = None
    dual = result.bounds.dual
    if result.stats.detail.get("preemption_left_out"):
        dual, message = None, "memory is short: schedules that preempt may beat its bound, which is left out"
        status = Termination.OTHER_LIMIT if status is Termination.OPTIMAL else status
    report = MethodReport(
        method=name,
        status=status,
        attained=None if evaluation is None else evaluation.num_attained,
        value=None if evaluation is None else evaluation.value,
        bound=dual if dual is not None and math.isfinite(dual) else None,
        wall_s=time.perf_counter() - started_s,
        versions=result.stats.versions,
        detail={key: count for key, count in result.stats.detail.items() if math.isfinite(count)},
        message=message,
    )
    return report, schedule, evaluation


def _status(methods: Sequence[MethodReport], found: bool, closed: bool) -> Termination:
    """One word for several methods: the worst thing that kept the gap open."""
    if found and closed:
        return Termination.OPTIMAL
    stopped = [report.status for report in methods]
    for status in (Termination.INTERRUPTED, Termination.TIME_LIMIT, Termination.OTHER_LIMIT, Termination.ERROR):
        if status in stopped:
            return status
    if not found and Termination.INFEASIBLE in stopped:
        return Termination.INFEASIBLE
    # Every method did all it can: what is left open is the gap between heuristic and relaxation.
    return Termination.OTHER_LIMIT


def _classes(instance: Instance, schedule: Schedule | None, evaluation: Evaluation | None) -> tuple[ClassReport, ...]:
    admitted = promised(schedule, evaluation)
    rows: dict[str, list[int]] = {}
    for index, request in enumerate(instance.requests):
        slo = instance.slo_of(request)
        if slo.best_effort:
            continue
        row = rows.setdefault(slo.name, [0, 0, 0])
        row[0] += 1
        row[1] += index in admitted
        row[2] += evaluation is not None and bool(evaluation.attained[index])
    return tuple(ClassReport(name, *rows[name]) for name in sorted(rows))


def promised(schedule: Schedule | None, evaluation: Evaluation | None) -> frozenset[int]:
    """Requests under an SLO that the plan promises to serve on time; all attained ones are among them."""
    if schedule is None or evaluation is None:
        return frozenset()
    attained = np.flatnonzero(evaluation.attained).tolist()
    return frozenset(index for index in schedule.admitted if evaluation.counted[index]) | frozenset(attained)


def _run_all(
    solvers: dict[str, ScheduleSolver], instance: Instance, config: SolverConfig
) -> tuple[dict[str, MethodReport], tuple[Schedule, Evaluation] | None]:
    """Relaxations in threads of their own, the other methods one after another in this one, where Ctrl-C arrives."""
    reports: dict[str, MethodReport] = {}
    best: tuple[Schedule, Evaluation] | None = None
    stop = threading.Event()
    started_s = time.perf_counter()

    def relax(name: str) -> None:
        own = replace(config, progress=_named(config.progress, name), stop=stop)
        reports[name] = _run(name, solvers[name], instance, own)[0]

    planners = [name for name in solvers if name not in BOUND_METHODS]
    with ThreadPoolExecutor(max(1, len(solvers) - len(planners))) as pool:
        relaxations = [pool.submit(relax, name) for name in solvers if name in BOUND_METHODS]
        try:
            for position, name in enumerate(planners):
                limit_s = config.time_limit_s
                if limit_s is not None:
                    left_s = max(0.0, limit_s - (time.perf_counter() - started_s))
                    limit_s = left_s / (len(planners) - position)
                own = replace(config, time_limit_s=limit_s, progress=_named(config.progress, name))
                report, schedule, evaluation = _run(name, solvers[name], instance, own)
                reports[name] = report
                if (
                    schedule is not None
                    and evaluation is not None
                    and (best is None or evaluation.value > best[1].value)
                ):
                    best = schedule, evaluation
                if report.status is Termination.INTERRUPTED:
                    stop.set()
                    if best is not None:
                        break
        except BaseException:
            stop.set()  # the pool waits for the relaxations
            raise
        while relaxations:
            try:
                relaxations.pop().result()
            except KeyboardInterrupt:
                stop.set()
    return reports, best


def solve_instance(
    instance: Instance,
    methods: Sequence[str],
    config: SolverConfig,
    solver_named: Callable[[str], ScheduleSolver] = schedule_solver,
) -> SolveReport:
    """Run the methods, replay every schedule, keep the best one and the least proved bound.

    A method with a `prepare` (compilation) has it called first; the time limit starts after it.

    Parameters
    ----------
    instance : Instance
        What to solve.
    methods : sequence of str
        Names known to the registry. Relaxations run beside the others, which share the time limit one after another.
    config : SolverConfig
        `time_limit_s` is for all methods together, in seconds on the wall.
    solver_named : callable
        Gives the solver of a name.

    Raises
    ------
    InvalidInputError
        A method is unknown, or does not take this instance; nothing has run then.
    SolverNotAvailableError
        A method's library is missing; nothing has run then.
    UnsoundBoundError
        A schedule is worth more than a bound.
    """
    solvers = {name: solver_named(name) for name in dict.fromkeys(methods)}
    for solver in solvers.values():
        check = getattr(solver, "check", None)
        if check is not None:
            check(instance)
    for name, solver in solvers.items():
        prepare = getattr(solver, "prepare", None)
        if prepare is not None:
            if config.progress is not None:
                config.progress(f"{name}: compiling, once a machine", None)
            prepare()
    started_s = time.perf_counter()
    reports, best = _run_all(solvers, instance, config)
    bound, bound_by = servable_value(instance), SERVABLE
    for name, report in reports.items():
        if report.bound is not None and sharpened(report.bound, instance) < bound:
            bound, bound_by = sharpened(report.bound, instance), name
    value = 0.0 if best is None else best[1].value
    if value > bound + _RELATIVE_TOLERANCE * max(1.0, bound):
        raise UnsoundBoundError(
            f"{instance.name}: a schedule of value {value:g} passed the checker, but {bound_by!r} claims that none "
            f"exceeds {bound:g}: that model is wrong. Please report it with the trace, the engine and the seed"
        )
    found = best is not None
    closed = gap_of(value, bound) <= 1e-9
    schedule, evaluation = best or (None, None)
    classes = _classes(instance, schedule, evaluation)
    return SolveReport(
        instance=instance,
        schedule=schedule,
        evaluation=evaluation,
        offered=sum(row.offered for row in classes),
        admitted=sum(row.admitted for row in classes),
        attained=sum(row.attained for row in classes),
        offered_value=math.fsum(map(instance.value_of, instance.requests)),
        value=value,
        bound=bound,
        bound_by=bound_by,
        status=_status(list(reports.values()), found, closed),
        methods=tuple(reports[name] for name in solvers if name in reports),
        classes=classes,
        wall_s=time.perf_counter() - started_s,
    )
