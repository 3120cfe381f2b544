"""The traffic that a fleet is planned for: a trace file, if wanted played along a day's rate curve."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slo_opt.analysis.gap_source import TraceSource, instance_of
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.traces.rate_curve import DAY_S, RateCurve, along_curve, read_rate_curve


@dataclass(frozen=True, slots=True)
class Day:
    """A day of a rate curve.

    Parameters
    ----------
    curve : Path
        File of the curve.
    number : int
        Which of its days, from 0.
    length_s : float
        Seconds in which the day passes: at less than 86,400 every rate lasts shorter.

    Raises
    ------
    InvalidInputError
        The length is no part of a day.
    """

    curve: Path
    number: int = 0
    length_s: float = DAY_S

    def __post_init__(self) -> None:
        if not 1 <= self.length_s <= DAY_S:
            raise InvalidInputError(f"a day passes in {self.length_s:g} s; expected seconds in [1, {DAY_S:g}]")

    def rates(self) -> RateCurve:
        """The day's curve."""
        return read_rate_curve(self.curve).day(self.number)


@dataclass(frozen=True, slots=True)
class FleetSource:
    """Requests under SLOs, described by plain data so that any process can make them again.

    Parameters
    ----------
    trace : TraceSource
        The file, and what is taken of it. Requests that no schedule can serve count as offered and lost.
    scale : float
        Factor on its arrival rate.
    day : Day or None
        Play it along a day's curve, at the trace's own mean rate.
    """

    trace: TraceSource
    scale: float = 1.0
    day: Day | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.trace.name if self.day is None else f"{self.trace.name} along {self.day.curve.name}"

    def inputs(self) -> dict[str, Any]:
        """What the instance depends on."""
        day = self.day
        along = None if day is None else {"file": _digest(day.curve), "number": day.number, "length_s": day.length_s}
        return {**self.trace.inputs(self.scale), "day": along}

    @property
    def where(self) -> dict[str, Any]:
        """Where its files are."""
        return {**self.trace.where, "curve": None if self.day is None else str(self.day.curve)}

    @property
    def hours_per_s(self) -> float:
        """Hours of the planned time that a second of the trace stands for."""
        return (1.0 if self.day is None else DAY_S / self.day.length_s) / 3600

    def describe(self) -> dict[str, Any]:
        """For reports."""
        day = self.day
        along = None if day is None else {"curve": str(day.curve), "number": day.number, "length_s": day.length_s}
        return {**self.trace.describe(), "scale": self.scale, "day": along}


@lru_cache(maxsize=4)
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fleet_instance(inputs: Mapping[str, Any], place: str | None, curve: str | None) -> Instance:
    """The instance that `FleetSource.inputs` describes.

    Raises
    ------
    InvalidInputError, TraceFormatError
        As reading the files does.
    """
    whole = instance_of(inputs, place)
    if inputs["day"] is None:
        return whole
    assert curve is not None
    times_s = [request.arrival_s for request in whole.requests]
    if times_s[-1] <= times_s[0]:
        raise InvalidInputError(
            f"{whole.name}: all requests arrive at one moment: there is no rate to play along a day"
        )
    # A mean gap after the last request, as between all others.
    rate = (len(times_s) - 1) / (times_s[-1] - times_s[0])
    day = Day(Path(curve), inputs["day"]["number"], inputs["day"]["length_s"])
    return whole.with_requests(
        along_curve(whole.requests, day.rates(), rate=rate, duration_s=day.length_s, seed=inputs["seed"])
    )
