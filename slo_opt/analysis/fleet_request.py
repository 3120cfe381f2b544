"""What is asked of a fleet plan, and the independent units of work that answer it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slo_opt.analysis.fleet_promise import Promise
from slo_opt.analysis.fleet_source import FleetSource, fleet_instance
from slo_opt.analysis.fleet_stress import AS_IS, Stress
from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.domain.instance import Instance
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import policy_entry
from slo_opt.routing.registry import router_entry
from slo_opt.simulate.tasks import Task
from slo_opt.traces.engine_file import engine_from
from slo_opt.traces.nearest import did_you_mean

BOUND_UNIT = "slo_opt.analysis.fleet_bound:bound_unit"
CUT_UNIT = "slo_opt.analysis.fleet_bound:cut_unit"
COUNT_UNIT = "slo_opt.analysis.fleet_count:count_unit"
MOST_ENGINES = 3  # the cheapest mix is searched exactly
MOST_PERIODS = 2000


@dataclass(frozen=True, slots=True)
class Offer:
    """An engine type that can be had.

    Parameters
    ----------
    engine : str or None
        A built-in engine or a file; None for the one that the trace names.
    price : float
        Of one replica an hour (> 0), in any currency.
    """

    engine: str | None
    price: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.price < 1e9:
            raise InvalidInputError(f"engine {self.engine}: price is {self.price}; expected a number above 0")


@dataclass(frozen=True, slots=True)
class Pair:
    """A scheduler in each replica, and the router before them."""

    policy: str
    router: str

    @property
    def name(self) -> str:
        """For people, and as users type it."""
        return f"{self.policy}+{self.router}"


@dataclass(frozen=True, slots=True)
class Period:
    """Seconds of the trace whose requests are bounded together."""

    number: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is asked.

    Parameters
    ----------
    source : FleetSource
        The traffic.
    promise : Promise
        What must be attained.
    offers : tuple of Offer
        Engine types; the first one's zero-load TTFT is what relative TTFT limits refer to.
    pairs : tuple of Pair
        Whose fleets are sized by simulation; may be empty.
    stresses : tuple of Stress
        Under which all is found anew; the first is none.
    lengths : str
        What schedulers and routers know of output lengths.
    limit : int
        Most replicas of a type.
    period_s : float or None
        Seconds of planned time after which the fleet may change; None to bound the trace as a whole.
    time_limit_s : float
        For each bound.
    seed : int
        Of the simulations.
    all_settings : bool
        Size fleets at the best static setting of policy and router; otherwise at the default.

    Raises
    ------
    InvalidInputError
        Unknown names, or figures out of range.
    """

    source: FleetSource
    promise: Promise
    offers: tuple[Offer, ...]
    pairs: tuple[Pair, ...] = ()
    stresses: tuple[Stress, ...] = (AS_IS,)
    lengths: str = "quantile"
    limit: int = 512
    period_s: float | None = None
    time_limit_s: float = 300.0
    seed: int = 0
    all_settings: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.offers) <= MOST_ENGINES:
            raise InvalidInputError(f"{len(self.offers)} engine types; give one to {MOST_ENGINES}")
        if not 1 <= self.limit <= 100_000:
            raise InvalidInputError(f"at most {self.limit} replicas: expected a number in [1, 100000]")
        if not 0 < self.time_limit_s <= 1e9:
            raise InvalidInputError(f"time limit is {self.time_limit_s} s; expected seconds above 0")
        if self.period_s is not None and not 1 <= self.period_s <= 1e9:
            raise InvalidInputError(f"a period of {self.period_s} s; expected at least 1 s")
        if self.period_s is not None and self.promise.overall is None:
            raise InvalidInputError("periods are bounded by the attainment of all requests; give one share for all")
        if self.lengths not in LENGTHS:
            hint = did_you_mean(self.lengths, LENGTHS)
            raise InvalidInputError(f"unknown length knowledge {self.lengths!r}. {hint}Known: {', '.join(LENGTHS)}")
        for pair in self.pairs:
            policy_entry(pair.policy)
            router_entry(pair.router)

    def instance(self) -> Instance:
        """The traffic on the first engine, as it is.

        Raises
        ------
        InvalidInputError, TraceFormatError
            As reading the files does; an engine type is named twice.
        """
        where = self.source.where
        instance = fleet_instance(self.source.inputs(), where["place"], where["curve"])
        names = [engine.name for engine in self.engines(instance)]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"engine type {name!r} is given twice; give each once")
        return instance

    def engines(self, instance: Instance) -> tuple[EngineModel, ...]:
        """The engine types."""
        return tuple(instance.engine if offer.engine is None else engine_from(offer.engine) for offer in self.offers)

    @property
    def prices(self) -> tuple[float, ...]:
        """Of the engine types."""
        return tuple(offer.price for offer in self.offers)

    def periods(self, instance: Instance, stress: Stress) -> tuple[Period, ...]:
        """The periods in which requests arrive; none where the trace is bounded as a whole.

        Raises
        ------
        InvalidInputError
            There are too many.
        """
        if self.period_s is None:
            return ()
        length_s = self.period_s / (3600 * self.source.hours_per_s) / stress.rate
        times_s = [request.arrival_s / stress.rate for request in instance.requests]
        if times_s[-1] / length_s > MOST_PERIODS:
            raise InvalidInputError(
                f"{instance.name}: more than {MOST_PERIODS} periods of {self.period_s:g} s; make them longer"
            )
        numbers = sorted({math.floor(time_s / length_s) for time_s in times_s})
        return tuple(Period(number, number * length_s, (number + 1) * length_s) for number in numbers)

    def _inputs(self, stress: Stress) -> dict[str, Any]:
        engines = [
            {"name": offer.engine, "hash": None if offer.engine is None else engine_hash(engine_from(offer.engine))}
            for offer in self.offers
        ]
        return {
            "instance": self.source.inputs(),
            "promise": self.promise.inputs(),
            "stress": asdict(stress),
            "engines": engines,
        }

    def bound_task(self, stress: Stress, period: Period | None = None) -> Task:
        """The bound on the whole trace, or on what arrives in a period."""
        inputs = {
            **self._inputs(stress),
            "prices": list(self.prices),
            "limit": self.limit,
            "time_limit_s": self.time_limit_s,
            "period": None if period is None else asdict(period),
        }
        label = f"bound, {stress.name}" + ("" if period is None else f", period {period.number}")
        return Task(BOUND_UNIT, inputs, label, self.source.where)

    def cut_task(self, stress: Stress, period: Period, counts: Sequence[int]) -> Task:
        """What a given fleet attains at most of what arrives in a period."""
        inputs = {
            **self._inputs(stress),
            "time_limit_s": self.time_limit_s,
            "period": asdict(period),
            "counts": list(counts),
        }
        label = f"bound, {stress.name}, period {period.number} with {sum(counts)} replicas"
        return Task(CUT_UNIT, inputs, label, self.source.where)

    def count_task(self, stress: Stress, pair: Pair, kind: int, at_least: int) -> Task:
        """The fleet of one type that a pair needs; no fewer than `at_least` replicas, which is proved."""
        inputs = {
            **self._inputs(stress),
            "kind": kind,
            "pair": asdict(pair),
            "lengths": self.lengths,
            "limit": self.limit,
            "at_least": at_least,
            "seed": self.seed,
            "all_settings": self.all_settings,
        }
        return Task(COUNT_UNIT, inputs, f"{pair.name}, {stress.name}", self.source.where)
