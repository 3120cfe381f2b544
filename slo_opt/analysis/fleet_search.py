"""The least fleet that passes a test which nobody has proved to be monotone: gallop up, bisect, look below."""

from collections.abc import Callable
from dataclasses import dataclass

_STEP = 1.25  # from one fleet tried to the next while none has passed


@dataclass(frozen=True, slots=True)
class FleetSearch:
    """Outcome of `least_passing`.

    Parameters
    ----------
    count : int or None
        A count that passes while the one below it fails; None if none that was tried passes.
    probes : tuple of (int, bool)
        Counts in the order in which they were tried, and whether they passed.
    """

    count: int | None
    probes: tuple[tuple[int, bool], ...]

    @property
    def monotone(self) -> bool:
        """Whether no count that was tried failed above one that passed."""
        passed = [count for count, good in self.probes if good]
        failed = [count for count, good in self.probes if not good]
        return not passed or not failed or max(failed) < min(passed)


def least_passing(passes: Callable[[int], bool], start: int, limit: int) -> FleetSearch:
    """Search from `start` up to the first count that passes, then between it and the last that failed below.

    Passing need not be monotone in the count: the result passes and the count below it fails, and nothing is claimed of
    counts that were not tried. `start` is followed by the count below it if it passes.

    Parameters
    ----------
    passes : callable
        The test; called once a count.
    start, limit : int
        First count and largest, ``1 <= start <= limit``.
    """
    probes: dict[int, bool] = {}

    def tried(count: int) -> bool:
        if count not in probes:
            probes[count] = passes(count)
        return probes[count]

    count, low = start, start - 1
    while not tried(count):
        if count == limit:
            return FleetSearch(None, tuple(probes.items()))
        low, count = count, min(limit, max(count + 1, round(count * _STEP)))
    high = count
    while low == start - 1 and low > 0 and tried(low):  # `start` was no lower bound after all
        high, start, low = low, low, low - 1
    while high - low > 1:
        middle = (low + high) // 2
        if tried(middle):
            high = middle
        else:
            low = middle
    return FleetSearch(high, tuple(probes.items()))
