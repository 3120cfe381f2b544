"""A bounded memory of batches: all of the latest, and a few of every kind seen before."""

import numpy as np
from numpy.typing import NDArray

from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.engine_fit import SECONDS

Floats = NDArray[np.float64]


class SampleWindow:
    """The latest batches, and of those that left, the latest of every kind.

    A kind is decode only, prefill only or mixed, with the powers of two of the tokens and of four of the context.
    An engine that decodes for an hour forgets nothing about prefill.

    Parameters
    ----------
    recent : int
        Latest batches kept.
    kinds : int
        Kinds remembered; the one unseen for longest goes first.
    per_kind : int
        Batches kept of a kind once they are no longer among the latest.

    Attributes
    ----------
    count : int
        Batches seen.
    """

    def __init__(self, recent: int = 256, kinds: int = 32, per_kind: int = 8) -> None:
        self._recent, self._kinds, self._per_kind = recent, kinds, per_kind
        self._table = np.zeros((recent + kinds * per_kind, SECONDS + 1))
        self._kind = np.full(len(self._table), -1, dtype=np.int64)
        self._slots: dict[int, int] = {}  # kind -> block of rows, the one unseen for longest first
        self._turn = [0] * kinds
        self.count = 0

    def add(self, sample: BatchSample) -> None:
        """Remember a batch."""
        row = self.count % self._recent
        if self.count >= self._recent:
            self._keep(row)
        context, pairs = sample.decode_context_tokens, sample.prefill_pairs
        self._table[row] = (
            sample.num_tokens,
            sample.draft_steps,
            context,
            pairs,
            sample.num_requests,
            sample.seconds,
        )
        mix = (1 if context else 0) + (2 if pairs else 0)
        self._kind[row] = mix + 4 * int(sample.num_tokens).bit_length() + 512 * (int(context).bit_length() // 2)
        self.count += 1

    def _keep(self, row: int) -> None:
        """Move a row that is about to be overwritten to those of its kind."""
        kind = int(self._kind[row])
        slot = self._slots.pop(kind, None)
        if slot is None:
            if len(self._slots) < self._kinds:
                slot = len(self._slots)
            else:
                slot = self._slots.pop(next(iter(self._slots)))
                first = self._recent + slot * self._per_kind
                self._kind[first : first + self._per_kind] = -1
                self._turn[slot] = 0
        self._slots[kind] = slot
        place = self._recent + slot * self._per_kind + self._turn[slot]
        self._turn[slot] = (self._turn[slot] + 1) % self._per_kind
        self._table[place] = self._table[row]
        self._kind[place] = kind

    def rows(self) -> NDArray[np.intp]:
        """Places of all batches kept, those no longer among the latest first, the rest in order of arrival."""
        kept = np.flatnonzero(self._kind[self._recent :] >= 0) + self._recent
        return np.concatenate([kept, self.latest(self._recent)])

    def latest(self, count: int) -> NDArray[np.intp]:
        """Places of the latest batches, in order of arrival."""
        number = min(count, self.count, self._recent)
        return np.arange(self.count - number, self.count) % self._recent

    def table(self, rows: NDArray[np.intp]) -> Floats:
        """The batches at these places, shape (len(rows), 6)."""
        return self._table[rows]

    def kinds(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Kind of each of them."""
        return self._kind[rows]

    def slow_down(self, rows: NDArray[np.intp], factor: float) -> None:
        """Multiply the times of batches: what they would take now that the engine has changed its speed."""
        self._table[rows, SECONDS] *= factor
