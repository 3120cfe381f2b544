"""Level 2 as a CP-SAT model: Booleans only, and the integers of the problem as they are.

Nothing is rounded. Where the coefficients of a row could overflow CP-SAT's 64-bit sums, the row is rewritten exactly:
a coefficient over the right-hand side forbids its Boolean whatever its size, and what is still too long is split into
two rows of high and low digits joined by a carry. See formulations/README.md, level 2.
"""

import math
from collections.abc import Sequence

from ortools.sat.python import cp_model

from slo_opt.domain.admission import AdmissionProblem

MAX_ROW_SUM = 1 << 61  # CP-SAT refuses rows whose activity may leave int64
_DIGITS = 31

Term = tuple[int, cp_model.IntVar]


def admission_cp_model(problem: AdmissionProblem) -> tuple[cp_model.CpModel, list[cp_model.IntVar]]:
    """State the problem.

    Parameters
    ----------
    problem : AdmissionProblem
        ``N`` candidates, ``L`` pieces, ``K`` tiers.

    Returns
    -------
    tuple
        The model, and its Booleans ``accept[j]``.

    Notes
    -----
    ``present[i][k]``: an accepted ``j < i`` has a tier at most ``k``. The compute rows of an interval are enforced by
    ``accept[i]`` where running decodes alone leave a debt there; elsewhere they hold at every interval, because the
    budget does not shrink between acceptances.
    """
    count, tiers, pieces = problem.num_candidates, problem.num_tiers, problem.supply_ps.shape[0]
    supply, headroom = problem.supply_ps.tolist(), problem.headroom_ppm.tolist()
    work, load = problem.work_ps.tolist(), problem.load_ppm.tolist()
    length, tier, blocks = problem.length_us.tolist(), problem.tier.tolist(), problem.blocks.tolist()

    model = cp_model.CpModel()
    accept = [model.new_bool_var(f"accept {problem.ids[j]}") for j in range(count)]
    for j in range(count):
        if problem.mandatory[j]:
            model.add(accept[j] == 1)

    present: list[list[cp_model.IntVar]] = [[]]
    for i in range(1, count + 1):
        present.append([model.new_bool_var(f"present {i} {k}") for k in range(tiers)])
        for k in range(tiers):
            if i > 1:
                model.add_implication(present[i - 1][k], present[i][k])
            if tier[i - 1] <= k:
                model.add_implication(accept[i - 1], present[i][k])

    for piece in range(pieces):
        alone = 0
        lasted: list[int] = []  # time since the deadline of each candidate before
        steps: list[Term] = []
        for i in range(count):
            alone += supply[piece][i][tiers]
            lasted = [gone + length[i] for gone in lasted]
            if i:
                row = supply[piece][i]
                steps += [(row[k + 1] - row[k], present[i][k]) for k in range(tiers) if row[k + 1] > row[k]]
            terms = [(work[piece][j] + load[piece][j] * lasted[j], accept[j]) for j in range(i)]
            terms += [(work[piece][i], accept[i]), *steps]
            add_at_most(model, terms, alone, only_if=accept[i] if alone < 0 else None)
            lasted.append(0)
        for i in range(1, count + 1):
            row = headroom[piece][i]
            terms = [(load[piece][j], accept[j]) for j in range(i)]
            terms += [(row[k + 1] - row[k], present[i][k]) for k in range(tiers) if row[k + 1] > row[k]]
            _unless_empty(model, terms, row[tiers], accept[:i])
    for i in range(count + 1):
        held = [(blocks[j], accept[j]) for j in range(min(i + 1, count))]
        _unless_empty(model, held, int(problem.free_blocks[i]), accept[: i + 1])

    model.maximize(sum(int(problem.value[j]) * accept[j] for j in range(count)))
    return model, accept


def add_at_most(
    model: cp_model.CpModel, terms: Sequence[Term], limit: int, only_if: cp_model.IntVar | None = None
) -> None:
    """Add ``Σ coefficient · Boolean <= limit``, exactly, for coefficients >= 0 of any size.

    Parameters
    ----------
    model : cp_model.CpModel
        Where to.
    terms : sequence of (int, Boolean)
        Left-hand side.
    limit : int
        Right-hand side.
    only_if : Boolean or None
        Demanded only if this one is true.
    """

    def add(constraint: cp_model.BoundedLinearExpression | bool) -> None:
        added = model.add(constraint)
        if only_if is not None:
            added.only_enforce_if(only_if)

    if limit < 0:
        if only_if is None:
            model.add_bool_or([])
        else:
            model.add(only_if == 0)
        return
    capped = [(min(amount, limit + 1), literal) for amount, literal in terms if amount]
    total = sum(amount for amount, _ in capped)
    if total <= limit:
        return
    common = math.gcd(*(amount for amount, _ in capped))
    capped, limit, total = [(a // common, x) for a, x in capped], limit // common, total // common
    if total + limit < MAX_ROW_SUM:
        add(sum(amount * literal for amount, literal in capped) <= limit)
        return
    high = sum((amount >> _DIGITS) * literal for amount, literal in capped)
    low = sum((amount & ((1 << _DIGITS) - 1)) * literal for amount, literal in capped)
    carry = model.new_int_var(0, len(capped), "carry")
    add(low <= (limit & ((1 << _DIGITS) - 1)) + (1 << _DIGITS) * carry)
    add(high + carry <= limit >> _DIGITS)


def _unless_empty(
    model: cp_model.CpModel, terms: Sequence[Term], limit: int, members: Sequence[cp_model.IntVar]
) -> None:
    """At most `limit` if any of `members` is accepted; a negative limit therefore forbids them all."""
    if limit >= 0:
        add_at_most(model, terms, limit)
    else:
        for literal in members:
            model.add(literal == 0)
