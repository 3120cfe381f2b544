"""Level 1: the exact optimum on batches, by CP-SAT."""

import math
import time

import ortools
from ortools.sat.python import cp_model

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.formulations.batches_cpsat import BatchesModel, Grid, sufficient_slots
from slo_opt.formulations.batches_rounds import rounds_of
from slo_opt.solvers.batches_timing import Contents, timed_schedule
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination

_MOST_VARIABLES = 200_000


class BatchesCpSatSolver:
    """Exact on batches, for one replica, without preemption and speculation.

    The dual bound is the one CP-SAT proves on the outer grid with a sufficient number of slots: it holds for every
    legal schedule without preemption and speculation on one replica. The schedule is the outer optimum with exact
    times; where rounding made that impossible, the optimum of the inner grid. Both are replayed by `evaluate`.
    """

    name = "cpsat"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Best schedule and bound.

        Raises
        ------
        InvalidInputError
            More than one replica, more rounds than `max_num_seqs`, or far too large an instance.
        """
        begin = time.monotonic()
        if instance.num_replicas != 1:
            raise InvalidInputError(f"{instance.name}: the exact model takes one replica, not {instance.num_replicas}")
        rounds = rounds_of(instance)
        slots = sufficient_slots(instance, rounds)
        size = sum(rnd.output_tokens + 2 for rnd in rounds) * slots
        if size > _MOST_VARIABLES:
            raise InvalidInputError(
                f"{instance.name}: the exact model would take {slots} batches and about {size} variables, more than "
                f"{_MOST_VARIABLES}; it is for a dozen requests: take a smaller window, or method 'highs' for a bound"
            )
        best, value, dual = Schedule.from_batches([]), 0.0, math.inf
        detail = {"slots": float(slots)}
        origin_s = min((rnd.arrival_s for rnd in rounds), default=0.0)
        status = Termination.OPTIMAL
        for outer in (True, False):
            left_s = None if config.time_limit_s is None else config.time_limit_s - (time.monotonic() - begin)
            if left_s is not None and left_s <= 0:
                status = Termination.TIME_LIMIT
                break
            model = BatchesModel(instance, Grid(outer, origin_s), slots)
            solver = cp_model.CpSolver()
            self._configure(solver, config, left_s)
            code = solver.solve(model.model)
            for key, figure in (("branches", solver.num_branches), ("conflicts", solver.num_conflicts)):
                detail[key] = detail.get(key, 0.0) + figure
            if outer:
                dual = solver.best_objective_bound / model.scale
            if code in (cp_model.OPTIMAL, cp_model.FEASIBLE):
                schedule = timed_schedule(instance, rounds, _contents(model, solver))
                outcome = evaluate(instance, schedule)
                if outcome.legal and outcome.value > value:
                    best, value = schedule, outcome.value
            print(outer, solver.status_name(code), solver.objective_value, value, dual, solver.wall_time)
            if code != cp_model.OPTIMAL:
                break
            if dual <= value * (1+1e-9):
                break
        return ScheduleResult(status, best, ObjectiveBounds(value, dual), SolveStats(time.monotonic() - begin, {}, detail))

    @staticmethod
    def _configure(solver: cp_model.CpSolver, config: SolverConfig, left_s: float | None) -> None:
        parameters = solver.parameters
        parameters.num_workers = config.threads
        parameters.random_seed = config.seed
        parameters.log_search_progress = config.log
        parameters.relative_gap_limit = config.relative_gap
        if left_s is not None:
            parameters.max_time_in_seconds = left_s


def _contents(model: BatchesModel, solver: cp_model.CpSolver) -> Contents:
    slots = range(model.slots)
    return Contents(
        chunks=tuple(tuple(solver.value(row[b]) for b in slots) for row in model.chunk),
        tokens=tuple(
            tuple(b for row in token for b in slots if solver.boolean_value(row[b])) for token in model.token
        ),
        clock_late=tuple(False for _ in model.rounds),
    )
