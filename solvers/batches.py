"""Level 1: the exact optimum on batches, by CP-SAT."""

import math
import time
from typing import TYPE_CHECKING, Any

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.formulations.batches_rounds import rounds_of
from slo_opt.solvers.batches_timing import Contents, timed_schedule
from slo_opt.solvers.cpsat_run import set_parameters
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination
from slo_opt.solvers.stoppable import run_stoppable
from slo_opt.solvers.versions import require

if TYPE_CHECKING:
    from slo_opt.formulations.batches_cpsat import BatchesModel

_MOST_VARIABLES = 50_000
_VALUE_TOLERANCE = 1e-9
_COARSE_PS = 10**7  # small domains of times make CP-SAT many times faster


class BatchesCpSatSolver:
    """The optimum over all schedules on one replica without preemption and speculation.

    Up to three models, each only where the ones before left a gap: outer grid of 10 µs and of 1 µs, both linear, which
    prove the dual bound with a sufficient number of slots; then the inner grid with exact prefill pairs, in search of
    a schedule only. What they put in the batches is timed exactly and replayed by `evaluate` before it counts.

    Notes
    -----
    CP-SAT 9.15 with its default presolve calls worse schedules optimal on this model, with products of variables and
    without. The dual reductions of its presolve are switched off, and no bound is taken from a model with products.

    Raises
    ------
    SolverNotAvailableError
        OR-Tools is missing or an untested version.
    """

    name = "cpsat"

    def __init__(self) -> None:
        self._versions = require("ortools")

    def check(self, instance: Instance) -> None:
        """Refuse what the model is not for, before anything runs.

        Raises
        ------
        InvalidInputError
            More than one replica, or an instance far beyond a dozen requests.
        """
        from slo_opt.formulations.batches_cpsat import sufficient_slots

        if instance.num_replicas != 1:
            raise InvalidInputError(
                f"{instance.name}: the exact model takes one replica, not {instance.num_replicas}; "
                "take method 'highs' for a bound"
            )
        rounds = rounds_of(instance)
        slots = sufficient_slots(instance, rounds)
        variables = slots * sum(rnd.output_tokens + 2 for rnd in rounds)
        if variables > _MOST_VARIABLES:
            raise InvalidInputError(
                f"{instance.name}: the exact model would take {slots} batches and {variables} variables, more than "
                f"{_MOST_VARIABLES}: it is for a dozen requests; take a smaller window, or method 'highs' for a bound"
            )

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Best schedule and bound; ``OTHER_LIMIT`` where a gap is left when all models are solved.

        Raises
        ------
        InvalidInputError
            More than one replica, or an instance far beyond a dozen requests.
        """
        from slo_opt.formulations.batches_cpsat import BatchesModel, Grid, sufficient_slots

        began = time.perf_counter()
        self.check(instance)
        rounds = rounds_of(instance)
        slots = sufficient_slots(instance, rounds)
        best, value = Schedule.from_batches([]), 0.0
        dual = math.fsum(instance.value_of(instance.requests[i]) for i in {rnd.request for rnd in rounds})
        # Where memory is short a schedule that preempts may do better than any without.
        wanted = sum(instance.engine.kv_blocks_for(rnd.final_context) for rnd in rounds)
        detail = {"slots": float(slots), "models": 0.0, "branches": 0.0, "conflicts": 0.0}
        detail["preemption_left_out"] = float(wanted > instance.engine.kv_blocks)
        origin_s = min((rnd.arrival_s for rnd in rounds), default=0.0)
        models = [
            (Grid(True, origin_s, _COARSE_PS), False),
            (Grid(True, origin_s), False),
            (Grid(False, origin_s), True),
        ]
        termination = Termination.OTHER_LIMIT
        if not slots:
            models, dual, termination = [], 0.0, Termination.OPTIMAL
        for grid, exact_pairs in models:
            model = BatchesModel(instance, grid, slots, exact_pairs=exact_pairs)
            left_s = None if config.time_limit_s is None else config.time_limit_s - (time.perf_counter() - began)
            if left_s is not None and left_s <= 0:
                termination = Termination.TIME_LIMIT
                break
            solver, ended = _run(model, config, left_s)
            detail["models"] += 1
            detail["branches"] += solver.num_branches
            detail["conflicts"] += solver.num_conflicts
            if solver.response_proto.solution:
                if not exact_pairs:
                    dual = min(dual, math.floor(solver.best_objective_bound + 1e-6) / model.scale)
                schedule = timed_schedule(instance, rounds, _contents(model, solver))
                outcome = evaluate(instance, schedule)
                if outcome.legal and outcome.value > value:
                    best, value = schedule, outcome.value
            if _within(value, dual, config.relative_gap):
                termination = Termination.OPTIMAL
                break
            if ended is not Termination.OPTIMAL:
                termination = ended
                break
        stats = SolveStats(time.perf_counter() - began, self._versions, detail)
        if dual > value - 1e-6:  # one that is lower is wrong, and must be seen
            dual = max(value, dual)
        return ScheduleResult(termination, best, ObjectiveBounds(value, dual), stats)


def _run(model: "BatchesModel", config: SolverConfig, left_s: float | None) -> tuple[Any, Termination]:
    """One call of CP-SAT, and why it stopped."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    set_parameters(solver, config, left_s)
    parameters = solver.parameters
    parameters.cp_model_probing_level = 0  # costs more time here than it saves
    # Dual reductions have cut off optima of this model too: see the trap in formulations/README.md.
    parameters.keep_all_feasible_solutions_in_presolve = True

    def tick(seconds: float) -> None:
        if config.progress is not None:
            config.progress("exact on batches", None if left_s is None else min(1.0, seconds / left_s))

    code, stopped = run_stoppable(lambda: solver.solve(model.model), solver.stop_search, tick)
    if code == cp_model.OPTIMAL:
        return solver, Termination.OPTIMAL
    if code not in (cp_model.FEASIBLE, cp_model.UNKNOWN):
        return solver, Termination.ERROR  # to accept nobody is always feasible
    return solver, Termination.INTERRUPTED if stopped else Termination.TIME_LIMIT


def _contents(model: "BatchesModel", solver: Any) -> Contents:
    """What CP-SAT put in the batches."""
    slots = range(model.slots)
    tokens = tuple(tuple(b for row in token for b in slots if solver.boolean_value(row[b])) for token in model.token)
    clock_late = [False] * len(model.rounds)
    for r, due in model.clock_due.items():
        clock_late[r] = bool(tokens[r]) and solver.value(model.end[tokens[r][0]]) > solver.value(due)
    return Contents(
        chunks=tuple(tuple(solver.value(row[b]) for b in slots) for row in model.chunk),
        tokens=tokens,
        clock_late=tuple(clock_late),
    )


def _within(value: float, dual: float, relative_gap: float) -> bool:
    return dual - value <= max(_VALUE_TOLERANCE, relative_gap * max(1.0, abs(value)))
