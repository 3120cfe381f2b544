"""How much longer batches take than the engine model says, learned from what they took."""


class Margin:
    """Factors on predicted batch times that few batches exceed, and next to none.

    An exponentially weighted mean of actual over predicted, plus a few times its mean deviation; never below 1, and
    exactly 1 while the model is exact.

    Parameters
    ----------
    memory : int
        Batches over which it forgets.
    """

    def __init__(self, memory: int = 50) -> None:
        self._weight = 1 / memory
        self._mean = 1.0
        self._deviation = 0.0
        self._predicted_s: float | None = None

    @property
    def factor(self) -> float:
        """What one batch in twenty exceeds: for what may be late once."""
        return self.beyond(2.0)

    def beyond(self, deviations: float) -> float:
        """What to multiply a predicted time with, at so many mean deviations above the mean.

        Of normally distributed times one in twenty exceeds 2, one or two in a thousand 4.
        """
        return max(1.0, self._mean + deviations * self._deviation)

    def expect(self, predicted_s: float | None) -> None:
        """What the model says of the batch that starts now; None if none starts."""
        self._predicted_s = predicted_s

    def learn(self, actual_s: float | None) -> None:
        """What the last batch took."""
        if actual_s is None or not self._predicted_s:
            return
        ratio = actual_s / self._predicted_s
        if abs(ratio - 1) < 1e-9:
            ratio = 1.0  # rounding must not make an exact model look noisy
        self._deviation += self._weight * (abs(ratio - self._mean) - self._deviation)
        self._mean += self._weight * (ratio - self._mean)
