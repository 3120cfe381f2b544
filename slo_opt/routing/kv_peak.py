"""The most KV that requests will hold together, each until it has produced its output."""

from collections.abc import Sequence

import numpy as np


class KvPeak:
    """Fullest moment of a cache whose requests decode in step.

    All produce a token a step; each leaves after its remaining tokens and frees what it holds. The cache is fullest
    just before somebody leaves. As `slo_opt.policies.reservation.Reservation`, but in tokens, and asked about one more
    request in logarithmic time.

    Parameters
    ----------
    sizes, lefts : sequence of int
        Of each request: tokens of context now, and output tokens still to come (0: it leaves at once).
    """

    def __init__(self, sizes: Sequence[int], lefts: Sequence[int]) -> None:
        size, left = np.array(sizes, dtype=np.int64), np.array(lefts, dtype=np.int64)
        order = np.argsort(left, kind="stable")
        self._left = left = left[order]
        # Held by the k-th to leave and by all after it: at first, and when the k-th leaves.
        self._size_from = np.append(np.cumsum(size[order][::-1])[::-1], 0)
        held = self._size_from[:-1] + np.arange(len(left), 0, -1) * left
        self._most_from = np.append(np.maximum.accumulate(held[::-1])[::-1], 0)
        # One more request adds its size and a token a step to every departure before its own.
        self._most_grown_until = np.concatenate(([0], np.maximum.accumulate(held + left)))

    @property
    def tokens(self) -> int:
        """Tokens at the fullest moment."""
        return int(self._most_from[0])

    def tokens_with(self, size: int, left: int) -> int:
        """Tokens at the fullest moment with one more request."""
        first, last = np.searchsorted(self._left, left, side="left"), np.searchsorted(self._left, left, side="right")
        stay = len(self._left) - int(first)
        at_its_end = int(self._size_from[first]) + size + (stay + 1) * left
        before = size + int(self._most_grown_until[last]) if last else 0
        return max(before, at_its_end, int(self._most_from[last]))
