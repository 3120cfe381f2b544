"""How fast decodes really are: ahead of their SLO while the engine has time."""

import math


class Pace:
    """Seconds between two tokens of a decode, learned.

    An exponentially weighted mean of batch time times the share of batches that a decode is in.

    Parameters
    ----------
    memory : int
        Batches over which it forgets.
    """

    def __init__(self, memory: int = 100) -> None:
        self._weight = 1 / memory
        self._mean_s = math.inf
        self._batches = 0.0

    def of(self, tpot_s: float) -> float:
        """Expected seconds between tokens of a decode of that TPOT: never more than the TPOT."""
        return min(tpot_s, self._mean_s)

    def expect(self, running: int, joining: int) -> None:
        """Of so many decodes, so many are in the batch that starts now."""
        self._batches = running / joining if joining else 0.0

    def learn(self, batch_s: float | None) -> None:
        """What the last batch took."""
        if batch_s is None or not self._batches:
            return
        sample_s = batch_s * self._batches
        self._mean_s = sample_s if self._mean_s == math.inf else self._mean_s + self._weight * (sample_s - self._mean_s)
