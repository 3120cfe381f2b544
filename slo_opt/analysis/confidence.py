"""Mean and confidence interval of a few figures."""

import math
from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t, 1 to 10 degrees of freedom; beyond them the expansion has 4 digits.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t.

    References
    ----------
    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5 (expansion in powers of 1 / freedom).
    """
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def mean_and_interval(figures: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean, and its 95 % t interval; None with a single figure."""
    count = len(figures)
    mean = math.fsum(figures) / count
    if count < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((figure - mean) ** 2 for figure in figures) / (count - 1))
    half = t95(count - 1) * deviation / math.sqrt(count)
    return mean, (mean - half, mean + half)
