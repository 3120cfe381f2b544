"""How long a request that arrives now can typically wait: no batch should last longer."""

import bisect
from collections import deque

from slo_opt.domain.errors import InvalidInputError


class TypicalSlack:
    """A low quantile of the slack of the latest arrivals.

    The slack of a request is its TTFT limit less its zero-load TTFT. Nobody can join a batch that runs, so a longer
    batch makes late whoever has less slack and arrives at its beginning.

    Parameters
    ----------
    quantile : float
        Share of arrivals with less slack than the answer.
    initial_s : float
        Answer before anybody has come.
    window : int
        Arrivals remembered.

    Raises
    ------
    InvalidInputError
        The quantile is not in [0, 1].
    """

    def __init__(self, quantile: float, initial_s: float, window: int = 200) -> None:
        if not 0 <= quantile <= 1:
            raise InvalidInputError(f"quantile is {quantile}; expected a number in [0, 1]")
        self._quantile = quantile
        self._initial_s = initial_s
        self._window = window
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def arrived(self, slack_s: float) -> None:
        """Count an arrival."""
        if len(self._recent) == self._window:
            del self._sorted[bisect.bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(slack_s)
        bisect.insort(self._sorted, slack_s)

    @property
    def seconds(self) -> float:
        """The quantile."""
        if not self._sorted:
            return self._initial_s
        return self._sorted[int(self._quantile * (len(self._sorted) - 1))]
