"""A day's rate curve, and the requests of a trace played along it.

A curve is a CSV file with the columns ``t_s,rate_rps``: the start of each window and the arrival rate in it. Windows
are of one length, which the first two rows give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Request
from slo_opt.traces.arrivals import MAX_REQUESTS
from slo_opt.traces.formats.tables import Seconds, csv_rows
from slo_opt.traces.scenarios import checked_seed
from slo_opt.traces.source import load

FloatArray = NDArray[np.float64]
DAY_S = 86_400.0
_UNEVEN_S = 1e-6  # of a window's start, for the rounding of whoever wrote the file


class _Columns(msgspec.Struct):
    t_s: Seconds
    rate_rps: Annotated[float, msgspec.Meta(ge=0, le=1e9)]


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Arrival rate by windows of equal length.

    Parameters
    ----------
    name : str
        For reports.
    window_s : float
        Seconds a window (> 0).
    rates_rps : tuple of float
        Requests a second in each; none negative, not all 0.

    Raises
    ------
    InvalidInputError
        There is no window, or a figure is out of range.
    """

    name: str
    window_s: float
    rates_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.window_s) and self.window_s > 0):
            raise InvalidInputError(f"{self.name}: a window of {self.window_s} s; expected seconds above 0")
        if not all(0 <= rate < math.inf for rate in self.rates_rps):
            raise InvalidInputError(f"{self.name}: a rate is no number of requests a second >= 0")
        if not any(self.rates_rps):
            raise InvalidInputError(f"{self.name}: no request arrives in it: every rate is 0")

    @property
    def duration_s(self) -> float:
        """Seconds from its first window to the end of its last."""
        return self.window_s * len(self.rates_rps)

    @property
    def mean_rps(self) -> float:
        """Mean rate."""
        return math.fsum(self.rates_rps) / len(self.rates_rps)

    def day(self, number: int) -> "RateCurve":
        """One of its days, from 0.

        Raises
        ------
        InvalidInputError
            It does not last that long, or no whole number of its windows makes a day.
        """
        windows = round(DAY_S / self.window_s)
        days = len(self.rates_rps) // windows if windows else 0
        if abs(windows * self.window_s - DAY_S) > 1e-6 * DAY_S:
            raise InvalidInputError(f"{self.name}: windows of {self.window_s:g} s do not make up a day of {DAY_S:g} s")
        if not 0 <= number < days:
            raise InvalidInputError(f"{self.name}: has no day {number}; it holds {days} whole days, numbered from 0")
        rates = self.rates_rps[number * windows : (number + 1) * windows]
        return RateCurve(f"{self.name}, day {number}", self.window_s, rates)


def read_rate_curve(path: str | Path) -> RateCurve:
    """A curve from a CSV file, plain or gzip.

    Raises
    ------
    TraceFormatError
        It cannot be read, a row is damaged, or windows are of different lengths; the line is named.
    InvalidInputError
        No request arrives in it.
    """
    source = load(path, "window")
    lines, starts_s, rates = [], [], []
    for line, row in csv_rows(source, _Columns):
        lines.append(line)
        starts_s.append(row.t_s)
        rates.append(row.rate_rps)
    if len(rates) < 2:
        raise source.error(
            "file", f"holds {len(rates)} windows; expected at least two", "Give t_s and rate_rps of each."
        )
    window_s = starts_s[1] - starts_s[0]
    for number, (line, start_s) in enumerate(zip(lines, starts_s, strict=True)):
        expected_s = starts_s[0] + number * window_s
        if window_s <= 0 or abs(start_s - expected_s) > _UNEVEN_S * max(1.0, expected_s):
            raise source.error(
                line,
                f"t_s is {start_s:g}; expected {expected_s:g}: windows follow each other, all {window_s:g} s long",
                "Give one row for each window, in order.",
            )
    return RateCurve(source.name, window_s, tuple(rates))


def along_curve(
    requests: Sequence[Request], curve: RateCurve, *, rate: float, duration_s: float, seed: int = 0
) -> tuple[Request, ...]:
    """The requests played over and over along a curve.

    Their own arrivals are the clock: as many of them as are due by some moment have arrived by then. So bursts stay
    bursts, and in every window the trace passes at a speed in proportion to the curve.

    Parameters
    ----------
    requests : sequence of Request
        By arrival, at least one.
    curve : RateCurve
        Its shape; scaled to `rate` on average, and in time to `duration_s`.
    rate : float
        Requests a second on average (> 0).
    duration_s : float
        Arrivals lie in ``[0, duration_s)``.
    seed : int
        The first lap of seed 0 is the trace as it is. Every other lap shuffles the requests over the same arrivals.

    Returns
    -------
    tuple of Request
        By arrival; ids of later laps end in ``-lap1`` and so on.

    Raises
    ------
    InvalidInputError
        No request, a rate or duration that makes no sense, or more requests than can be held.
    """
    checked_seed(seed)
    if not requests:
        raise InvalidInputError("no request to play along the rate curve; the trace or the window is empty")
    if not 0 < rate < math.inf or not 0 < duration_s < math.inf:
        raise InvalidInputError(f"{rate} requests/s for {duration_s} s; expected two numbers above 0")
    if rate * duration_s > MAX_REQUESTS:
        raise InvalidInputError(
            f"{rate:g} requests/s for {duration_s:g} s are more than {MAX_REQUESTS} requests; lower one"
        )
    count = max(1, round(rate * duration_s))
    laps = -(-(count + 1) // len(requests))
    times_s = np.array([request.arrival_s for request in requests]) - requests[0].arrival_s
    # One mean gap between the last of a lap and the first of the next.
    period_s = float(times_s[-1]) * len(requests) / max(1, len(requests) - 1) or 1.0
    position = (np.arange(laps)[:, None] * period_s + times_s).ravel()
    arrivals_s = _inverse(curve, position[:count] / position[count]) * duration_s
    played: list[Request] = []
    for lap in range(laps):
        order = np.arange(len(requests))
        if lap or seed:
            order = np.random.default_rng([seed, lap]).permutation(len(requests))
        for index in order.tolist()[: count - len(played)]:
            request = requests[index]
            name = f"{request.id}-lap{lap}" if lap else request.id
            played.append(replace(request, id=name, arrival_s=float(arrivals_s[len(played)])))
    return tuple(played)


def _inverse(curve: RateCurve, shares: FloatArray) -> FloatArray:
    """Where on the curve, as a share of its duration, each share of its requests has arrived."""
    reached = np.concatenate([[0.0], np.cumsum(curve.rates_rps)]) / math.fsum(curve.rates_rps)
    reached[-1] = 1.0
    window = np.clip(np.searchsorted(reached, shares, side="right") - 1, 0, len(curve.rates_rps) - 1)
    inside = (shares - reached[window]) / np.maximum(reached[window + 1] - reached[window], 1e-300)
    along = (window + np.clip(inside, 0.0, 1.0)) / len(curve.rates_rps)
    return np.asarray(np.minimum(along, np.nextafter(1.0, 0.0)), dtype=np.float64)
