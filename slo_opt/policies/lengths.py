"""What a policy may know of output lengths: nothing, what it has seen, or all."""

import bisect
from collections.abc import Mapping
from typing import Protocol

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.traces.nearest import did_you_mean


class LengthPredictor(Protocol):
    """Estimates how many output tokens a round has yet to produce."""

    name: str

    def remaining_tokens(self, job: Job) -> int | None:
        """Output tokens still to come in the round, at least 1; None if nothing is known."""

    def observe(self, end: RoundEnd) -> None:
        """Learn from a round that ended."""


class NoLengths:
    """Knows nothing."""

    name = "none"

    def remaining_tokens(self, job: Job) -> int | None:
        """None."""
        return None

    def observe(self, end: RoundEnd) -> None:
        """Nothing is learned."""


class OracleLengths:
    """Knows every length: for bounds on what knowledge is worth, not for production.

    Parameters
    ----------
    lengths : mapping of str to sequence of int
        By request, the output tokens of each round.
    """

    name = "oracle"

    def __init__(self, lengths: Mapping[str, list[int]]) -> None:
        self._lengths = lengths

    @classmethod
    def of(cls, instance: Instance) -> "OracleLengths":
        """The lengths of an instance."""
        lengths: dict[str, list[int]] = {}
        for request in instance.requests:
            rounds: list[int] = []
            for stage in request.stages:
                if stage.prompt_tokens:
                    rounds.append(0)
                rounds[-1] += stage.output_tokens
            lengths[request.id] = rounds
        return cls(lengths)

    def remaining_tokens(self, job: Job) -> int | None:
        """The truth."""
        return max(1, self._lengths[job.id][job.round] - job.emitted_tokens)

    def observe(self, end: RoundEnd) -> None:
        """Nothing is left to learn."""


class QuantileLengths:
    """Learns the lengths of each SLO class as rounds end.

    Of the lengths seen in the class it takes those above what the round has already produced, and answers with a
    quantile of their rest.

    Parameters
    ----------
    quantile : float
        In [0, 1]: 0.5 is as often short as long; above it errs on the side of long outputs.
    default_tokens : int
        Length assumed of a class that has not yet ended a round.
    window : int
        Latest lengths kept a class.

    References
    ----------
    Tempo / JITServe, arXiv 2504.20068 (upper quantiles refreshed as tokens appear).
    """

    name = "quantile"

    def __init__(self, quantile: float = 0.5, default_tokens: int = 256, window: int = 2000) -> None:
        if not 0 <= quantile <= 1:
            raise InvalidInputError(f"quantile is {quantile}; expected a number in [0, 1]")
        if default_tokens < 1 or window < 1:
            raise InvalidInputError("default_tokens and window must be at least 1")
        self._quantile = quantile
        self._default = default_tokens
        self._window = window
        self._sorted: dict[str, list[int]] = {}
        self._recent: dict[str, list[int]] = {}
        self._oldest: dict[str, int] = {}

    def remaining_tokens(self, job: Job) -> int | None:
        """A quantile of the rest, given what has been produced."""
        seen = self._sorted.get(job.round_slo)
        done = job.emitted_tokens
        if not seen:
            return max(1, self._default - done)
        first = bisect.bisect_right(seen, done)
        longer = len(seen) - first
        if not longer:
            return max(1, done // 4)  # beyond all that was seen: lengths are heavy-tailed
        return seen[first + min(longer - 1, int(self._quantile * longer))] - done

    def observe(self, end: RoundEnd) -> None:
        """Count the length of a round that ended."""
        slo, length = end.round_slo, end.output_tokens
        seen = self._sorted.setdefault(slo, [])
        recent = self._recent.setdefault(slo, [])
        if len(recent) < self._window:
            recent.append(length)
        else:
            oldest = self._oldest.get(slo, 0)
            del seen[bisect.bisect_left(seen, recent[oldest])]
            recent[oldest] = length
            self._oldest[slo] = (oldest + 1) % self._window
        bisect.insort(seen, length)


LENGTHS = ("quantile", "oracle", "none")


def make_lengths(name: str, instance: Instance) -> LengthPredictor:
    """Fresh length knowledge by name: one of `LENGTHS`.

    Raises
    ------
    InvalidInputError
        There is none of that name; the message suggests the nearest.
    """
    if name == "oracle":
        return OracleLengths.of(instance)
    if name == "quantile":
        return QuantileLengths()
    if name == "none":
        return NoLengths()
    raise InvalidInputError(
        f"unknown length knowledge {name!r}. {did_you_mean(name, LENGTHS)}Known: {', '.join(LENGTHS)}"
    )
