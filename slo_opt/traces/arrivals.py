"""Arrival processes: Poisson, gamma renewal, and bursts modulated by a two-state Markov chain."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError

MAX_REQUESTS = 5_000_000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gamma:
    """Renewal process with gamma-distributed gaps.

    Parameters
    ----------
    cv : float
        Coefficient of variation of the gaps; 1 is Poisson.
    """

    cv: float = 1.0

    def sample(self, rate: float, duration_s: float, rng: Generator) -> Floats:
        """Sorted arrival times in ``[0, duration_s)``, seconds, at `rate` requests a second on average."""
        shape = self.cv**-2
        times = np.empty(0)
        last_s = 0.0
        while last_s < duration_s:
            gaps = rng.gamma(shape, 1 / (rate * shape), max(16, int(rate * duration_s * 1.1)))
            times = np.concatenate([times, last_s + np.cumsum(gaps)])
            last_s = float(times[-1])
        return times[times < duration_s]


@dataclass(frozen=True, slots=True)
class Bursts:
    """Poisson arrivals whose rate switches between quiet and burst; both last an exponential time.

    Parameters
    ----------
    burst_s, quiet_s : float
        Mean duration of a burst and of the quiet between two.
    quiet_share : float
        Share of all requests that arrive in the quiet, in [0, 1).
    level_cv : float
        Coefficient of variation of the rate from burst to burst (gamma-distributed).
    """

    burst_s: float
    quiet_s: float
    quiet_share: float
    level_cv: float

    def sample(self, rate: float, duration_s: float, rng: Generator) -> Floats:
        """Sorted arrival times in ``[0, duration_s)``, seconds, at `rate` requests a second on average."""
        cycle_s = self.burst_s + self.quiet_s
        burst_rate = rate * (1 - self.quiet_share) * cycle_s / self.burst_s
        quiet_rate = rate * self.quiet_share * cycle_s / self.quiet_s
        shape = self.level_cv**-2
        pieces: list[Floats] = []
        now_s = 0.0
        bursting = bool(rng.random() < self.burst_s / cycle_s)
        while now_s < duration_s:
            end_s = min(now_s + rng.exponential(self.burst_s if bursting else self.quiet_s), duration_s)
            level = burst_rate * rng.gamma(shape, 1 / shape) if bursting else quiet_rate
            pieces.append(np.sort(rng.uniform(now_s, end_s, rng.poisson(level * (end_s - now_s)))))
            now_s, bursting = end_s, not bursting
        return np.concatenate(pieces)


Arrivals = Gamma | Bursts
POISSON = Gamma(1.0)
# Azure 2023 code: gaps up to 30 s have a CV of 6.2, and the fullest 10 s of an hour hold 12.7 times the mean.
CODE_BURSTS = Bursts(burst_s=12.0, quiet_s=30.0, quiet_share=0.01, level_cv=1.0)
ARRIVALS: dict[str, Arrivals] = {"poisson": POISSON, "bursty": CODE_BURSTS}


def arrivals_named(text: str) -> Arrivals:
    """``poisson``, ``bursty`` or ``gamma:CV``.

    Raises
    ------
    InvalidInputError
        Something else, or a CV outside [0.05, 20].
    """
    if text in ARRIVALS:
        return ARRIVALS[text]
    kind, _, value = text.partition(":")
    try:
        if kind == "gamma" and 0.05 <= float(value) <= 20:
            return Gamma(float(value))
    except ValueError:
        pass
    raise InvalidInputError(f"unknown arrivals {text!r}; expected poisson, bursty, or gamma:CV with CV in [0.05, 20]")


def arrival_times(arrivals: Arrivals, rate: float, duration_s: float, rng: Generator) -> Floats:
    """Sorted arrival times in ``[0, duration_s)``, rounded to microseconds.

    Raises
    ------
    InvalidInputError
        Rate or duration are not positive, or more than 5,000,000 requests are asked for.
    """
    if not (rate > 0 and 0 < duration_s <= 1e8):
        raise InvalidInputError(
            f"rate {rate} requests/s for {duration_s} s: both must be positive, the duration at most 1e8 s"
        )
    if rate * duration_s > MAX_REQUESTS:
        raise InvalidInputError(
            f"rate {rate} requests/s for {duration_s} s is more than {MAX_REQUESTS} requests; lower one of the two"
        )
    return np.floor(arrivals.sample(rate, duration_s, rng) * 1e6) / 1e6
