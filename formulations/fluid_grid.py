"""The time slots of the fluid relaxation: fine ones for prefills, runs of them (coarse) for decodes."""

from dataclasses import dataclass

import numpy as np

from slo_opt.domain.work import DecodeWork, PrefillWork
from slo_opt.formulations.sparse_model import FloatArray, IntArray

MOST_COARSE = 20_000  # coarse slots: pauses of days between rounds must not fill the memory
MOST_ENTRIES = 2_000_000  # pairs of a prefill or decode and a slot of its window


@dataclass(frozen=True, slots=True)
class FluidGrid:
    """Slots that cover every window. Windows are rounded outward to them, which keeps a bound valid.

    Parameters
    ----------
    fine_s : (T + 1,) float array
        Boundaries of the fine slots, at releases and deadlines thinned to a resolution.
    coarse_start : (C + 1,) int array
        Coarse slot ``c`` is fine slots ``coarse_start[c]:coarse_start[c + 1]``.
    pooled : bool
        Whether the leads of decodes are pooled.
    """

    fine_s: FloatArray
    coarse_start: IntArray
    pooled: bool

    @property
    def num_fine(self) -> int:
        """``T``."""
        return len(self.fine_s) - 1

    @property
    def num_coarse(self) -> int:
        """``C``."""
        return len(self.coarse_start) - 1

    @property
    def length_s(self) -> FloatArray:
        """(T,) lengths of the fine slots."""
        return np.diff(self.fine_s)

    @property
    def coarse_s(self) -> FloatArray:
        """(C + 1,) boundaries of the coarse slots."""
        return self.fine_s[self.coarse_start]

    @property
    def coarse_of_fine(self) -> IntArray:
        """(T,) coarse slot of each fine one."""
        return np.repeat(np.arange(self.num_coarse), np.diff(self.coarse_start))

    def fine_slots(self, release_s: float, due_s: float) -> tuple[int, int]:
        """Fine slots ``first:last`` that cover a window."""
        return _cover(self.fine_s, release_s, due_s)

    def coarse_slots(self, release_s: float, due_s: float) -> tuple[int, int]:
        """Coarse slots ``first:last`` that cover a window."""
        return _cover(self.coarse_s, release_s, due_s)

    def entries(self, prefills: list[PrefillWork], decodes: list[DecodeWork]) -> int:
        """Pairs of a prefill or decode and a slot of its window: what the size of the relaxation grows with."""
        windows = [self.fine_slots(work.release_s, work.due_s) for work in prefills]
        windows += [self.coarse_slots(work.release_s, work.last_due_s) for work in decodes]
        return sum(last - first for first, last in windows)

    def slice(self, coarse_first: int, coarse_last: int) -> "FluidGrid":
        """The grid of coarse slots ``coarse_first:coarse_last`` alone."""
        first, last = (int(self.coarse_start[c]) for c in (coarse_first, coarse_last))
        starts = self.coarse_start[coarse_first : coarse_last + 1] - first
        return FluidGrid(self.fine_s[first : last + 1], starts, self.pooled)

    def coarse_inside(self, first: int, last: int) -> tuple[int, int]:
        """Coarse slots that lie whole in fine slots ``first:last``; empty if the second is not larger."""
        return (
            int(np.searchsorted(self.coarse_start, first, side="left")),
            int(np.searchsorted(self.coarse_start, last, side="right")) - 1,
        )


def _cover(boundaries: FloatArray, release_s: float, due_s: float) -> tuple[int, int]:
    first = int(np.searchsorted(boundaries, release_s, side="right")) - 1
    last = int(np.searchsorted(boundaries, due_s, side="left"))
    return max(first, 0), max(last, first + 1)


def make_grid(
    prefills: list[PrefillWork], decodes: list[DecodeWork], *, resolution_s: float, coarse_s: float, pooled: bool
) -> FluidGrid:
    """Slots at releases and deadlines of prefills, none shorter than `resolution_s`; coarse ones of about `coarse_s`.

    Parameters
    ----------
    prefills, decodes : lists
        The work to cover.
    resolution_s, coarse_s : float
        Finer slots give a tighter bound and a larger model.
    pooled : bool
        See `FluidGrid`.
    """
    start_s = min(work.release_s for work in prefills)
    end_s = max([*(work.due_s for work in prefills), *(work.last_due_s for work in decodes)]) + 1e-3
    coarse_s = max(coarse_s, (end_s - start_s) / MOST_COARSE)
    wanted = np.array([time for work in prefills for time in (work.release_s, work.due_s)])
    wanted = np.sort(np.concatenate([wanted, np.arange(start_s, end_s, coarse_s)]))
    kept = [start_s]
    for time in wanted.tolist():
        if time - kept[-1] >= resolution_s:
            kept.append(time)
    fine = np.array([*kept, max(end_s, kept[-1] + 1e-3)])
    coarse = [0]
    for k in range(1, len(fine)):
        if fine[k] - fine[coarse[-1]] >= 0.999 * coarse_s or k == len(fine) - 1:
            coarse.append(k)
    return FluidGrid(fine, np.array(coarse), pooled)


def choose_grid(
    prefills: list[PrefillWork], decodes: list[DecodeWork], coarser: float = 1.0, most: int = MOST_ENTRIES
) -> FluidGrid:
    """A grid as fine as pays: a twentieth of a short prefill window, a few tokens of decode, coarser for long traces.

    All slots are `coarser` times as long, and twice as long again until there are at most about `most` entries. Decodes
    of more than 64 steps on average pool their leads: their freedom to run ahead is small beside their length.
    """
    windows_s = np.array([work.due_s - work.release_s for work in prefills])
    crowd = coarser * max(1.0, len(prefills) / 3000)
    resolution_s = float(np.clip(0.05 * crowd * np.quantile(windows_s, 0.25), 1e-3, 2.0))
    coarse_s, pooled = 5 * resolution_s, True
    if decodes:
        steps = float(np.mean([work.steps for work in decodes]))
        tpot_s = float(np.median([work.tpot_s for work in decodes]))
        pooled = steps > 64
        coarse_s = max(resolution_s, crowd * tpot_s * (20 if pooled else 4))
    while True:
        grid = make_grid(prefills, decodes, resolution_s=resolution_s, coarse_s=coarse_s, pooled=pooled)
        if grid.num_coarse == 1 or grid.entries(prefills, decodes) <= most:
            return grid
        resolution_s, coarse_s = 2 * resolution_s, 2 * coarse_s
