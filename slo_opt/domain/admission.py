"""The admission plan (level 2): which requests to accept at one moment, stated in integers.

All solvers read the same integers, so that feasibility is decided alike: times in µs, shares of engine time in ppm,
engine time in µs * ppm = ps. Derived from SLOs-Serve (arXiv 2504.08784, section 4); see formulations/README.md.

Candidates ``0..N-1`` are sorted by deadline. Time from now is cut at their deadlines: interval ``i`` ends at the
deadline of candidate ``i``, interval ``N`` runs from the last deadline to the horizon. With ``A`` the accepted set, the
*tightest tier* of interval ``i`` is the least ``tier_j`` over accepted ``j < i``, or ``K`` if there is none (running
decodes are inside the data already). For every interval ``i`` and roofline piece ``l``, with
``load_l = Σ_{j in A, j < i} load_ppm[l, j]`` and ``k`` the tightest tier of interval ``i``:

sustainable
    ``load_l <= headroom_ppm[l, i, k]``: decodes leave no negative share of engine time. Demanded of interval ``i``
    whenever some ``j < i`` is accepted.
compute
    the budget ``B_l(i) = B_l(i-1) + supply_ps[l, i, k] - length_us[i] * load_l - (work_ps[l, i] if i in A)`` with
    ``B_l(-1) = 0`` is not negative for any ``i`` in ``A``.
memory
    ``Σ_{j in A, j <= i} blocks[j] <= free_blocks[i]`` for every interval ``i`` in which some ``j <= i`` is accepted.
mandatory
    every mandatory candidate is in ``A``.

Maximise ``Σ_{j in A} value[j]``.

Data satisfy ``supply_ps >= length_us * headroom_ppm``, so that the budget never shrinks between acceptances and the
compute constraint then holds at every interval after the first acceptance. Before it, running decodes alone may leave
the budget negative: a debt that the first accepted request has to pay back.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AdmissionProblem:
    """Integers of one admission plan. ``N`` candidates, ``L`` roofline pieces, ``K`` tiers.

    Parameters
    ----------
    deadline_us : (N,) int array
        First-token deadlines from now, ascending, >= 0.
    tier : (N,) int array
        Tier of the decode, 0 the tightest (shortest effective period), < K.
    work_ps : (L, N) int array
        Engine time of the prefill, on piece l.
    load_ppm : (L, N) int array
        Share of engine time that the decode takes from the deadline on.
    blocks : (N,) int array
        KV blocks held from the prefill on.
    value : (N,) int array
        Value, > 0.
    mandatory : (N,) bool array
        Must be accepted.
    length_us : (N + 1,) int array
        Length of the intervals; the last one ends at the horizon.
    supply_ps : (L, N + 1, K + 1) int array
        Engine time left by batch overheads and running decodes in an interval, by tightest accepted tier. May be
        negative where the running decodes alone are too much.
    headroom_ppm : (L, N + 1, K + 1) int array
        Least share of engine time left at any moment of the interval, by tightest accepted tier; ascending in tier.
    free_blocks : (N + 1,) int array
        KV blocks free of running decodes at the fullest moment of the interval.
    ids : tuple of str
        Candidates' names, for reports.
    """

    deadline_us: IntArray
    tier: IntArray
    work_ps: IntArray
    load_ppm: IntArray
    blocks: IntArray
    value: IntArray
    mandatory: NDArray[np.bool_]
    length_us: IntArray
    supply_ps: IntArray
    headroom_ppm: IntArray
    free_blocks: IntArray
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        count, (pieces, _, tiers) = len(self.ids), self.supply_ps.shape
        shapes = {
            "deadline_us": (count,),
            "tier": (count,),
            "work_ps": (pieces, count),
            "load_ppm": (pieces, count),
            "blocks": (count,),
            "value": (count,),
            "mandatory": (count,),
            "length_us": (count + 1,),
            "supply_ps": (pieces, count + 1, tiers),
            "headroom_ppm": (pieces, count + 1, tiers),
            "free_blocks": (count + 1,),
        }
        for field, shape in shapes.items():
            if getattr(self, field).shape != shape:
                raise InvalidInputError(f"{field} has shape {getattr(self, field).shape}; expected {shape}")
        if np.any(np.diff(self.deadline_us) < 0) or np.any(self.deadline_us < 0):
            raise InvalidInputError("deadline_us must be ascending and not negative; sort the candidates by deadline")
        if np.any(np.diff(self.headroom_ppm, axis=2) < 0) or np.any(np.diff(self.supply_ps, axis=2) < 0):
            raise InvalidInputError("headroom_ppm and supply_ps must ascend with the tier: a tighter tier leaves less")
        if np.any(self.supply_ps < self.length_us[None, :, None] * self.headroom_ppm):
            raise InvalidInputError("supply_ps must be at least length_us * headroom_ppm")
        for field in ("work_ps", "load_ppm", "blocks", "length_us"):
            if np.any(getattr(self, field) < 0):
                raise InvalidInputError(f"{field} must not be negative: one more request never makes room for others")
        if np.any(self.value <= 0):
            raise InvalidInputError("value must be positive; leave worthless candidates out")

    @property
    def num_candidates(self) -> int:
        """``N``."""
        return len(self.ids)

    @property
    def num_tiers(self) -> int:
        """``K``."""
        return int(self.supply_ps.shape[2]) - 1

    def check(self, accepted: Iterable[int]) -> str | None:
        """Why the set is infeasible, naming rule and interval; None if it is feasible. Independent of solvers."""
        chosen = set(accepted)
        missing = [j for j in range(self.num_candidates) if self.mandatory[j] and j not in chosen]
        if missing:
            return f"mandatory: candidate {missing[0]} is left out"
        for piece in range(self.supply_ps.shape[0]):
            budget, load, tightest, any_accepted = 0, 0, self.num_tiers, False
            for i in range(self.num_candidates + 1):
                if any_accepted and load > int(self.headroom_ppm[piece, i, tightest]):
                    return f"sustainable: interval {i}, piece {piece}: load {load} ppm"
                budget += int(self.supply_ps[piece, i, tightest]) - int(self.length_us[i]) * load
                if i == self.num_candidates:
                    break
                if i in chosen:
                    budget -= int(self.work_ps[piece, i])
                    load += int(self.load_ppm[piece, i])
                    tightest = min(tightest, int(self.tier[i]))
                    any_accepted = True
                if budget < 0 and i in chosen:
                    return f"compute: interval {i}, piece {piece}: budget {budget} ps"
        held = 0
        for i in range(self.num_candidates + 1):
            held += int(self.blocks[i]) if i in chosen else 0
            if held > int(self.free_blocks[i]) and any(j <= i for j in chosen):
                return f"memory: interval {i}: {held} blocks of {int(self.free_blocks[i])}"
        return None

    def total_value(self, accepted: Iterable[int]) -> int:
        """``Σ value``."""
        return sum(int(self.value[j]) for j in accepted)
