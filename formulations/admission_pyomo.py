"""Level 2 as a Pyomo model: budgets and loads carried from interval to interval, rule by rule as in the statement.

Unlike `slo_opt.formulations.admission_highs` it keeps the budget as a variable and demands it only where a candidate is
accepted. See formulations/README.md, level 2.
"""

from collections.abc import Iterable

import pyomo.environ as pyo

from slo_opt.domain.admission import AdmissionProblem

PS_PER_UNIT = 1e9  # budgets in ms: the solver's feasibility tolerance of 1e-6 is then 1 ns
PPM_PER_UNIT = 1e3


def admission_model(problem: AdmissionProblem) -> pyo.ConcreteModel:
    """State the problem.

    Parameters
    ----------
    problem : AdmissionProblem
        ``N`` candidates, ``L`` pieces, ``K`` tiers.

    Returns
    -------
    pyomo.environ.ConcreteModel
        With ``accept[j]`` binary, ``present[i, k]`` (an accepted ``j < i`` has a tier at most ``k``),
        ``decode_load[l, i]`` in 0.001 of engine time, ``budget[l, i]`` in ms, objective ``total_value``, and an empty
        list ``excluded`` for `exclude`.
    """
    count, tiers = problem.num_candidates, problem.num_tiers
    model = pyo.ConcreteModel("admission plan")
    model.candidates = pyo.RangeSet(0, count - 1)
    model.intervals = pyo.RangeSet(0, count)
    model.tiers = pyo.RangeSet(0, tiers - 1)
    model.pieces = pyo.RangeSet(0, problem.supply_ps.shape[0] - 1)

    supply = (problem.supply_ps / PS_PER_UNIT).tolist()
    headroom = (problem.headroom_ppm / PPM_PER_UNIT).tolist()
    work = (problem.work_ps / PS_PER_UNIT).tolist()
    share = (problem.load_ppm / PPM_PER_UNIT).tolist()
    length = (problem.length_us * PPM_PER_UNIT / PS_PER_UNIT).tolist()
    tier, blocks, free = problem.tier.tolist(), problem.blocks.tolist(), problem.free_blocks.tolist()

    model.accept = pyo.Var(model.candidates, domain=pyo.Binary)
    model.present = pyo.Var(model.intervals, model.tiers, bounds=(0, 1))
    model.decode_load = pyo.Var(model.pieces, model.intervals, domain=pyo.NonNegativeReals)
    model.budget = pyo.Var(model.pieces, model.candidates)
    model.held = pyo.Var(model.intervals, domain=pyo.NonNegativeReals)
    accept, present, load, budget, held = model.accept, model.present, model.decode_load, model.budget, model.held

    @model.Objective(sense=pyo.maximize)
    def total_value(m: pyo.ConcreteModel) -> object:
        return pyo.quicksum(int(problem.value[j]) * accept[j] for j in m.candidates)

    for j in range(count):
        if problem.mandatory[j]:
            accept[j].setlb(1)
    for k in range(tiers):
        present[0, k].fix(0)
    for piece in model.pieces:
        load[piece, 0].fix(0)

    @model.Constraint(model.candidates, model.tiers)
    def tier_stays(m: pyo.ConcreteModel, j: int, k: int) -> object:
        return present[j + 1, k] >= present[j, k]

    @model.Constraint(model.candidates, model.tiers)
    def tier_appears(m: pyo.ConcreteModel, j: int, k: int) -> object:
        return present[j + 1, k] >= accept[j] if tier[j] <= k else pyo.Constraint.Skip

    def left(row: list[float], i: int) -> object:
        """``row[k]`` of the tightest tier ``k`` present in interval ``i``: each tier that is present takes its step."""
        return row[tiers] - sum(
            (row[k + 1] - row[k]) * present[i, k] for k in range(tiers) if i and row[k + 1] != row[k]
        )

    @model.Constraint(model.pieces, model.candidates)
    def load_carried(m: pyo.ConcreteModel, piece: int, i: int) -> object:
        return load[piece, i + 1] == load[piece, i] + share[piece][i] * accept[i]

    @model.Constraint(model.pieces, model.candidates)
    def budget_carried(m: pyo.ConcreteModel, piece: int, i: int) -> object:
        before = budget[piece, i - 1] if i else 0.0
        gain = left(supply[piece][i], i) - length[i] * load[piece, i] - work[piece][i] * accept[i]
        return budget[piece, i] == before + gain

    alone = problem.supply_ps[:, :count, tiers].cumsum(axis=1)  # the budget while nothing is accepted

    @model.Constraint(model.pieces, model.candidates)
    def compute(m: pyo.ConcreteModel, piece: int, i: int) -> object:
        debt = max(0.0, -float(alone[piece, i]) / PS_PER_UNIT)
        return budget[piece, i] >= -debt * (1 - accept[i])

    @model.Constraint(model.pieces, model.candidates)
    def sustainable(m: pyo.ConcreteModel, piece: int, j: int) -> object:
        row = headroom[piece][j + 1]
        if row[tiers] < 0:
            return load[piece, j + 1] + present[j + 1, tiers - 1] <= 0.0
        return load[piece, j + 1] <= left(row, j + 1)

    @model.Constraint(model.intervals)
    def blocks_held(m: pyo.ConcreteModel, i: int) -> object:
        before = held[i - 1] if i else 0.0
        return held[i] == before + (blocks[i] * accept[i] if i < count else 0.0)

    @model.Constraint(model.intervals)
    def memory(m: pyo.ConcreteModel, i: int) -> object:
        if free[i] >= 0:
            return held[i] <= free[i]
        return pyo.quicksum(accept[j] for j in range(min(i + 1, count))) <= 0 if count else pyo.Constraint.Skip

    model.excluded = pyo.ConstraintList()
    return model


def exclude(model: pyo.ConcreteModel, chosen: Iterable[int]) -> None:
    """Forbid a set and, since costs are not negative, all that contain it."""
    members = list(chosen)
    model.excluded.add(pyo.quicksum(model.accept[j] for j in members) <= len(members) - 1)
