"""Service level objectives: the limits a class of requests is promised, and the rule that scores them."""

import math
from dataclasses import dataclass
from enum import StrEnum

from slo_opt.domain.errors import InvalidInputError

MAX_LIMIT_MS = 86_400_000.0  # a day: anything longer is a unit error
TTFT_TOLERANCE = 1.05  # factor on the limits under the first-late-shifts rule


class ScoreRule(StrEnum):
    """When a request counts as attained. Part of every report.

    In all rules every output token must be produced; tokens are numbered from 1, ``D`` is the first-token deadline.

    Attributes
    ----------
    DSLO
        Token ``n`` of a decode phase is on time by ``D + (n - 1) * TPOT`` (PolyServe, arXiv 2507.17769, section 2).
    MEAN_TPOT
        First token by ``D``; mean time between tokens of each phase at most TPOT.
    FIRST_LATE_SHIFTS
        First token by ``D`` with 5 % tolerance on the TTFT limit; the decode clock starts at the later of ``D`` and
        the first token and runs 5 % slow (the scorer used by the authors of SLOs-Serve, arXiv 2504.08784).
    """

    DSLO = "dslo"
    MEAN_TPOT = "mean-tpot"
    FIRST_LATE_SHIFTS = "first-late-shifts"


@dataclass(frozen=True, slots=True)
class SloClass:
    """Limits shared by all stages that name this class.

    Parameters
    ----------
    name : str
        Unique within a trace.
    tpot_ms : float
        Time per output token.
    ttft_ms : float or None
        Time to first token, absolute. Exactly one of `ttft_ms` and `ttft_slowdown` is given.
    ttft_slowdown : float or None
        TTFT limit as a multiple (>= 1) of the zero-load TTFT of the stage's prompt on the engine at hand.
    weight : float
        Value of attaining one request of the class (> 0); 1 counts requests.
    best_effort : bool
        Under no SLO, never counted as offered or attained. Online policies serve it with left-over tokens; the plans of
        `solve` leave it out.

    Raises
    ------
    InvalidInputError
        A limit is missing, given twice, not positive and finite, or longer than a day.
    """

    name: str
    tpot_ms: float
    ttft_ms: float | None = None
    ttft_slowdown: float | None = None
    weight: float = 1.0
    best_effort: bool = False

    def __post_init__(self) -> None:
        where = f"SLO class {self.name!r}"
        if not self.name:
            raise InvalidInputError("an SLO class has an empty name; name it")
        if (self.ttft_ms is None) == (self.ttft_slowdown is None):
            raise InvalidInputError(f"{where}: give exactly one of ttft_ms and ttft_slowdown")
        for field, value in (("tpot_ms", self.tpot_ms), ("ttft_ms", self.ttft_ms)):
            if value is not None and not 0 < value <= MAX_LIMIT_MS:  # NaN fails too
                raise InvalidInputError(
                    f"{where}: {field} is {value}; expected milliseconds in (0, {MAX_LIMIT_MS:.0f}]"
                )
        if self.ttft_slowdown is not None and not 1 <= self.ttft_slowdown <= 1e6:
            raise InvalidInputError(
                f"{where}: ttft_slowdown is {self.ttft_slowdown}; expected a multiple >= 1 of the zero-load TTFT: "
                "below 1 no engine can be on time"
            )
        if not (math.isfinite(self.weight) and 0 < self.weight <= 1e6):
            raise InvalidInputError(f"{where}: weight is {self.weight}; expected a number in (0, 1e6]")

    def limits(self) -> dict[str, float]:
        """The limits that are given, and the weight, by field name."""
        found = {
            "ttft_ms": self.ttft_ms,
            "ttft_slowdown": self.ttft_slowdown,
            "tpot_ms": self.tpot_ms,
            "weight": self.weight,
        }
        return {field: value for field, value in found.items() if value is not None}
