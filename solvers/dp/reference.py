"""The same dynamic program in plain Python: the shortest exact statement of it, to check the kernel against.

Labels (value, budget and load of each piece, blocks held, tightest tier) are extended in deadline order, pruned by
dominance, by the best set found so far, and by a bound on what the candidates ahead can add: a fractional knapsack on
the compute budget at the last deadline. It shares no code and no bound with the kernel.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.admission import IntArray


@dataclass(frozen=True, slots=True)
class _Label:
    value: int
    budget: tuple[int, ...]
    load: tuple[int, ...]
    held: int
    tier: int
    accepted: tuple[int, ...]

    def dominates(self, other: "_Label") -> bool:
        """Every completion of `other` is feasible for this label too, and worth no less."""
        return (
            self.value >= other.value
            and self.held <= other.held
            and self.tier >= other.tier
            and all(mine >= its for mine, its in zip(self.budget, other.budget, strict=True))
            and all(mine <= its for mine, its in zip(self.load, other.load, strict=True))
        )


def solve_arrays(
    tier: IntArray,
    work_ps: IntArray,
    load_ppm: IntArray,
    blocks: IntArray,
    value: IntArray,
    mandatory: NDArray[np.bool_],
    length_us: IntArray,
    supply_ps: IntArray,
    headroom_ppm: IntArray,
    free_blocks: IntArray,
    max_labels: int,
) -> tuple[NDArray[np.bool_], int, int, int]:
    """Best set of candidates to accept; arguments and results as `slo_opt.solvers.dp.kernel.solve_arrays`."""
    (pieces, count), tiers = work_ps.shape, supply_ps.shape[2] - 1
    work, load, supply = work_ps.tolist(), load_ppm.tolist(), supply_ps.tolist()
    length, least_free, tier_of = length_us.tolist(), free_blocks.tolist(), tier.tolist()
    size, worth, must = blocks.tolist(), value.tolist(), mandatory.tolist()
    # Loads, blocks and the tightest tier only grow: comparing them once with the least limit to come is enough.
    least_free = list(accumulate(reversed(least_free), min))[::-1]
    headroom = np.minimum.accumulate(headroom_ppm[:, ::-1], axis=1)[:, ::-1].tolist()
    ahead = [_Ahead(work, supply, length, worth, start, tiers) for start in range(count + 1)]

    def accept(label: _Label, i: int) -> _Label | None:
        child = _Label(
            label.value + worth[i],
            tuple(label.budget[piece] - work[piece][i] for piece in range(pieces)),
            tuple(label.load[piece] + load[piece][i] for piece in range(pieces)),
            label.held + size[i],
            min(label.tier, tier_of[i]),
            (*label.accepted, i),
        )
        fits = child.held <= least_free[i] and all(
            child.budget[piece] >= 0 and child.load[piece] <= headroom[piece][i + 1][child.tier]
            for piece in range(pieces)
        )
        return child if fits else None

    best: _Label | None = None
    labels = [_Label(0, (0,) * pieces, (0,) * pieces, 0, tiers, ())]
    made = 0
    dropped = 0
    last_must = max((i for i in range(count) if must[i]), default=-1)
    for i in range(count + 1):
        if i > last_must:
            best = max([*labels, *([best] if best else [])], key=lambda label: label.value, default=None)
        if i == count:
            break
        if made >= max_labels and best:
            dropped = max((ahead[i].bound(label) for label in labels), default=0)
            break
        extended: list[_Label] = []
        for label in labels:
            now = _Label(
                label.value,
                tuple(
                    label.budget[piece] + supply[piece][i][label.tier] - length[i] * label.load[piece]
                    for piece in range(pieces)
                ),
                label.load,
                label.held,
                label.tier,
                label.accepted,
            )
            child = accept(now, i)
            made += child is not None
            extended += [child] if child else []
            extended += [] if must[i] else [now]
        labels = []
        for label in sorted(extended, key=lambda label: -label.value):
            hopeless = best is not None and ahead[i + 1].bound(label) <= best.value
            if not hopeless and not any(other.dominates(label) for other in labels):
                labels.append(label)

    accepted = np.zeros(count, dtype=np.bool_)
    if best is None:
        accepted[:] = mandatory
        return accepted, -1, -1, made
    accepted[list(best.accepted)] = True
    return accepted, best.value, max(best.value, dropped), made


class _Ahead:
    """Bound on the completions of a label by the candidates from `start` on."""

    def __init__(
        self,
        work: list[list[int]],
        supply: list[list[list[int]]],
        length: list[int],
        worth: list[int],
        start: int,
        tiers: int,
    ) -> None:
        count = len(worth)
        self._length = sum(length[start:count])
        self._total = sum(worth[start:])
        self._supply = [[sum(row[k] for row in piece[start:count]) for k in range(tiers + 1)] for piece in supply]
        self._knapsacks = []
        for piece in work:
            order = sorted(range(start, count), key=[a / b for a, b in zip(piece, worth, strict=True)].__getitem__)
            works = list(accumulate((piece[j] for j in order), initial=0))
            values = list(accumulate((worth[j] for j in order), initial=0))
            self._knapsacks.append((works, values))

    def bound(self, label: _Label) -> int:
        """Value of the label and, of the candidates ahead, a fractional knapsack in the budget at the last deadline.

        The budget counts supply at the label's own tier and its own load: candidates ahead only lower it.
        """
        add = self._total
        for piece, (works, values) in enumerate(self._knapsacks):
            left = label.budget[piece] + self._supply[piece][label.tier] - self._length * label.load[piece]
            if left < 0:
                return label.value  # only the empty set runs a debt, and it cannot pay it back
            full = bisect_right(works, left) - 1
            part = 0
            if full + 1 < len(works):
                step = works[full + 1] - works[full]
                part = -(-(left - works[full]) * (values[full + 1] - values[full]) // step)
            add = min(add, values[full] + part)
        return label.value + add
