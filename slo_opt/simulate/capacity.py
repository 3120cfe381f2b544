"""Capacity: the highest request rate at which a policy attains its target, at its best static setting."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slo_opt.domain.instance import Instance
from slo_opt.policies.catalogue import Setting
from slo_opt.policies.registry import policy_entry
from slo_opt.simulate.bracket import Search, highest_passing
from slo_opt.simulate.fluid_rate import fluid_rate
from slo_opt.simulate.play import play
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.verdict import Verdict, confirmed, judge, max_lost
from slo_opt.simulate.workload import Workload
from slo_opt.traces.unservable import check_attainable

_RANGE = 64.0  # from the first guess down and up
_LEAST_REQUESTS = 20  # fewer say nothing about a share
_SETTINGS_STEP = 1.2  # settings differ by less than rates do
Player = Callable[[Instance, int, SimulationOptions], Run]


@dataclass(frozen=True, slots=True)
class CapacityOptions:
    """How capacity is searched.

    Parameters
    ----------
    target : float
        Share of the offered requests under an SLO that must be attained.
    tolerance : float
        Relative width of the last bracket.
    lengths : str
        What the policy knows of output lengths.
    simulation : SimulationOptions
        Noise, model error, acceptance. Its seed is that of the workload.
    """

    target: float = 0.9
    tolerance: float = 0.03
    lengths: str = "quantile"
    simulation: SimulationOptions = field(default_factory=SimulationOptions)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Outcome of `find_capacity`.

    Parameters
    ----------
    rate : float
        Requests a second, of the replica or of the whole fleet; 0 if no rate passed.
    setting : Setting
        The best static setting.
    fails_at : float or None
        Lowest rate above that failed at that setting.
    monotone : bool
        No rate that was tried passed above one that failed.
    verdict : Verdict or None
        Of the run at `rate`; None for capacity 0.
    settings_tried : int
        How many were.
    probes : tuple of dict
        Every run: setting, rate, verdict.
    wall_s : float
        Seconds that it took.
    """

    rate: float
    setting: Setting
    fails_at: float | None
    monotone: bool
    verdict: Verdict | None
    settings_tried: int
    probes: tuple[dict[str, Any], ...]
    wall_s: float


def find_capacity(workload: Workload, policy: str, options: CapacityOptions | None = None) -> Capacity:
    """Highest rate that the policy sustains (see `judge`), over all its static settings.

    The default setting is searched first. Each other one is tried at the best rate so far times one plus the tolerance,
    and searched on from there only if it passes; so a setting is passed over only where it fails there.

    Parameters
    ----------
    workload : Workload
        Its rate is not used.
    policy : str
        Name of the policy.
    options : CapacityOptions or None
        None: the defaults.

    Raises
    ------
    InvalidInputError
        An unknown name; a target or tolerance out of range; no request that the engine could ever attain.
    IllegalAllocationError, IllegalRunError
        A defect of the policy or of the simulator.
    """
    options = options or CapacityOptions()
    settings = policy_entry(policy).settings

    def run(instance: Instance, number: int, simulation: SimulationOptions) -> Run:
        return play(instance, policy, settings[number], options.lengths, simulation)

    return search_settings(workload, settings, run, options)


def search_settings(
    workload: Workload, settings: Sequence[Setting], run: Player, options: CapacityOptions, num_replicas: int = 1
) -> Capacity:
    """The search of `find_capacity`, over whatever settings of whatever serves.

    Parameters
    ----------
    workload : Workload
        Its rate is not used.
    settings : sequence of mapping
        The default first.
    run : callable
        Serves an instance at the setting of that number.
    options : CapacityOptions
        Target, tolerance, simulation.
    num_replicas : int
        How many times what one replica can serve the search begins at.

    Raises
    ------
    InvalidInputError
        A target or tolerance out of range; no request that the engine could ever attain.
    IllegalRunError
        A defect of the simulator.
    """
    began_s = time.perf_counter()
    guess = num_replicas * _guess(workload, options.simulation.acceptance > 0)
    lowest = guess / _RANGE
    if not workload.windowed:
        lowest = max(lowest, _LEAST_REQUESTS / workload.duration_s)
        guess = max(guess, lowest)
    simulation = replace(options.simulation, seed=workload.seed)
    probes: list[dict[str, Any]] = []
    passed: dict[tuple[int, float], tuple[Run, Verdict]] = {}

    def passes(number: int, rate: float) -> bool:
        instance = replace(workload, rate=rate).instance()
        limited = replace(simulation, max_lost=max_lost(instance, options.target))
        served = run(instance, number, limited)
        verdict = judge(served, options.target)
        if verdict.passed and all(rate > known for _, known in passed):
            passed.clear()
            passed[number, rate] = served, verdict
        probes.append({"setting": number, "rate": rate, "passed": verdict.passed, "reason": verdict.reason})
        return verdict.passed

    best: Search | None = None
    chosen = 0
    for number in range(len(settings)):
        first = best is None or best.rate is None
        start = guess if best is None or best.rate is None else best.rate * (1 + options.tolerance)
        search = highest_passing(
            lambda rate, number=number: passes(number, rate),  # type: ignore[misc]
            min(start, guess * _RANGE),
            floor=lowest,
            ceiling=guess * _RANGE,
            tolerance=options.tolerance,
            step=1.5 if first else _SETTINGS_STEP,
            give_up=not first,
        )
        if best is None or (search.rate is not None and (best.rate is None or search.rate > best.rate)):
            best, chosen = search, number
    assert best is not None
    verdict = None
    if best.rate is not None:
        served, verdict = passed[chosen, best.rate]
        confirmed(served)
    return Capacity(
        rate=best.rate or 0.0,
        setting=dict(settings[chosen]),
        fails_at=best.fails_at,
        monotone=best.monotone,
        verdict=verdict,
        settings_tried=len(settings),
        probes=tuple(probes),
        wall_s=time.perf_counter() - began_s,
    )


def _guess(workload: Workload, speculating: bool) -> float:
    """Where to begin. Also refuses what no rate can help."""
    sample = replace(workload, rate=max(1.0, 100 / workload.duration_s)).instance()
    if not speculating:
        check_attainable(sample)
    guess = fluid_rate(sample)
    return guess if math.isfinite(guess) and guess > 0 else 1.0
