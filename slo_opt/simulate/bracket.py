"""The highest rate that passes a test: bracket, then bisection on a logarithmic scale."""

from collections.abc import Callable
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Search:
    """Outcome of `highest_passing`.

    Parameters
    ----------
    rate : float or None
        Highest rate that was tried and passed; None if none did.
    fails_at : float or None
        Lowest rate above it that was tried and failed; None if the search ended at its ceiling.
    probes : tuple of (float, bool)
        Rates in the order in which they were tried, and whether they passed.
    """

    rate: float | None
    fails_at: float | None
    probes: tuple[tuple[float, bool], ...]

    @property
    def monotone(self) -> bool:
        """Whether no rate that was tried passed above one that failed."""
        failed = [rate for rate, passed in self.probes if not passed]
        return self.rate is None or not failed or min(failed) > self.rate


def highest_passing(
    passes: Callable[[float], bool],
    start: float,
    *,
    floor: float,
    ceiling: float,
    tolerance: float = 0.03,
    step: float = 1.5,
    give_up: bool = False,
) -> Search:
    """Search the highest rate at which `passes` is true.

    From `start` down by factors until a rate passes, or up until two in a row fail; then bisection between the highest
    pass and the lowest failure above it. Passing need not be monotone in the rate: two failures in a row end the way
    up, so that a single one does not; a pass above a failure counts; whatever lies beyond is not looked for. So the
    result is a rate that passes, with a failure at most `tolerance` above it.

    Parameters
    ----------
    passes : callable
        The test; called once a rate.
    start : float
        First rate.
    floor, ceiling : float
        Rates not left downwards and upwards.
    tolerance : float
        Relative width of the last bracket, in (0, 1].
    step : float
        Factor between rates while bracketing, above 1.
    give_up : bool
        Stop at once if `start` fails: the question was only whether something above it passes.

    Raises
    ------
    InvalidInputError
        A parameter is out of range.
    """
    if not 0 < tolerance <= 1:
        raise InvalidInputError(f"tolerance is {tolerance}; expected a relative width in (0, 1], for example 0.03")
    if not step > 1:
        raise InvalidInputError(f"step is {step}; expected a factor above 1")
    if not 0 < floor <= start <= ceiling < float("inf"):
        raise InvalidInputError(f"rates {floor} <= {start} <= {ceiling}: expected 0 < floor <= start <= ceiling")
    probes: dict[float, bool] = {}

    def tried(rate: float) -> bool:
        if rate not in probes:
            probes[rate] = passes(rate)
        return probes[rate]

    def found() -> Search:
        low = max((rate for rate, passed in probes.items() if passed), default=None)
        failed = (rate for rate, passed in probes.items() if not passed and (low is None or rate > low))
        return Search(low, min(failed, default=None), tuple(probes.items()))

    rate = start
    while not tried(rate):
        if give_up or rate == floor:
            return found()
        rate = max(rate / step, floor)
    failures = 0
    while failures < 2 and rate < ceiling:
        rate = min(rate * step, ceiling)
        failures = 0 if tried(_near(rate, probes)) else failures + 1
    while True:
        search = found()
        if search.rate is None or search.fails_at is None or search.fails_at <= search.rate * (1 + tolerance):
            return search
        tried((search.rate * search.fails_at) ** 0.5)


def _near(rate: float, probes: dict[float, bool]) -> float:
    """The rate, or one already tried that differs from it by rounding alone."""
    return next((known for known in probes if abs(known - rate) <= 1e-9 * rate), rate)
