"""How far online policies are from the certified bound, load by load.

What is shown is the *information gap* of formulations/README.md: an online policy, which decides without the future,
against a bound on every schedule, clairvoyant ones included. The looseness of the bound itself is part of it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slo_opt.analysis.gap_source import GapSource, instance_of
from slo_opt.analysis.solve import servable_value, solve_instance
from slo_opt.domain.errors import InvalidInputError, SloOptError
from slo_opt.domain.fingerprint import engine_hash, requests_hash
from slo_opt.domain.instance import Instance
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import policy_entry
from slo_opt.simulate.metrics import ClassMetrics, run_metrics
from slo_opt.simulate.play import play
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.tasks import Task
from slo_opt.simulate.verdict import confirmed
from slo_opt.solvers.interface import SolverConfig, Termination
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.unservable import check_attainable

BOUND_METHOD = "highs"
_BOUND_UNIT = "slo_opt.analysis.gap:bound_unit"
_RUN_UNIT = "slo_opt.analysis.gap:run_unit"


class BoundFailedError(SloOptError):
    """The solver of the bound failed: a defect."""


@dataclass(frozen=True, slots=True)
class GapRequest:
    """What is asked of a gap table.

    Parameters
    ----------
    source : ScenarioSource or TraceSource
        What is served.
    loads : tuple of float
        Multiples of the source's rate.
    policies : tuple of str
        Names.
    lengths : str
        What policies know of output lengths.
    simulation : SimulationOptions
        Noise, model error, acceptance, seed.
    all_settings : bool
        Run every static setting of a policy and take the best at each load; otherwise its default.
    time_limit_s : float
        Of each bound.
    class_bounds : bool
        Bound each SLO class by a solve of its own.

    Raises
    ------
    InvalidInputError
        An unknown name, no load, or a load that is not positive.
    """

    source: GapSource
    loads: tuple[float, ...]
    policies: tuple[str, ...]
    lengths: str = "quantile"
    simulation: SimulationOptions = field(default_factory=SimulationOptions)
    all_settings: bool = True
    time_limit_s: float = 60.0
    class_bounds: bool = False

    def __post_init__(self) -> None:
        for load in self.loads:
            if not 1e-6 <= load <= 1e6:
                raise InvalidInputError(f"load {load}: expected multiples above 0, for example 0.6,0.8,1,1.2,1.4")
        if not self.loads or not self.policies:
            raise InvalidInputError("a gap table needs at least one load and one policy")
        if self.lengths not in LENGTHS:
            hint = did_you_mean(self.lengths, LENGTHS)
            raise InvalidInputError(f"unknown length knowledge {self.lengths!r}. {hint}Known: {', '.join(LENGTHS)}")
        if not 0 < self.time_limit_s <= 1e9:
            raise InvalidInputError(f"time limit is {self.time_limit_s} s; expected seconds above 0")
        for policy in self.policies:
            policy_entry(policy)

    @property
    def no_bound(self) -> str | None:
        """Why there is no bound on these runs; None if there is one."""
        if self.simulation.acceptance:
            return (
                "with a draft model a step may produce several tokens; the bound covers schedules without speculation"
            )
        if self.simulation.noise:
            return "with noise a batch may be quicker than the engine model, on which the bound rests"
        if self.simulation.slowdown < 1:
            return "batches are quicker than the engine model, on which the bound rests"
        return None

    def bound_task(self, load: float, only: str | None = None) -> Task:
        """The bound at a load, of all requests or of one SLO class."""
        inputs = {"instance": self.source.inputs(load), "time_limit_s": self.time_limit_s, "class": only}
        label = f"bound at load {load:g}" + (f", class {only}" if only else "")
        return Task(_BOUND_UNIT, inputs, label, self.source.where)

    def run_task(self, load: float, policy: str) -> Task:
        """A policy at a load."""
        inputs = {
            "instance": self.source.inputs(load),
            "policy": policy,
            "lengths": self.lengths,
            "simulation": asdict(self.simulation),
            "all_settings": self.all_settings,
        }
        return Task(_RUN_UNIT, inputs, f"{policy} at load {load:g}", self.source.where)

    def tasks(self) -> list[Task]:
        """All units but the bounds of classes; bounds first, since they take longest."""
        bounds = [] if self.no_bound else [self.bound_task(load) for load in self.loads]
        return bounds + [self.run_task(load, policy) for load in self.loads for policy in self.policies]

    def class_tasks(self, results: Mapping[str, Mapping[str, Any]]) -> list[Task]:
        """Bounds of the SLO classes, of which the bounds of the loads tell."""
        if self.no_bound or not self.class_bounds:
            return []
        return [
            self.bound_task(load, name)
            for load in self.loads
            for name in _classes_of(results.get(self.bound_task(load).key))
        ]


def _classes_of(bound: Mapping[str, Any] | None) -> list[str]:
    """Classes that need a bound of their own: all, unless there is one alone."""
    names = list(bound["classes"]) if bound is not None else []
    return names if len(names) > 1 else []


def bound_unit(inputs: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """The work of a bound task; a plain JSON object."""
    whole = instance_of(inputs["instance"], place)
    check_attainable(whole)
    instance, only = whole, inputs["class"]
    if only is not None:
        instance = whole.with_requests(tuple(r for r in whole.requests if whole.slo_of(r).name == only))
    report = solve_instance(instance, (BOUND_METHOD,), SolverConfig(time_limit_s=inputs["time_limit_s"]))
    method = report.methods[0]
    if method.status is Termination.INTERRUPTED:
        raise KeyboardInterrupt
    if method.status is Termination.ERROR:
        raise BoundFailedError(f"{instance.name}: the bound failed: {method.message}")
    return {
        "bound": report.bound,
        "bound_by": report.bound_by,
        "status": method.status.value,
        "offered": report.offered,
        "offered_value": report.offered_value,
        "classes": {row.name: _servable(instance, row.name) for row in report.classes},
        "wall_s": report.wall_s,
        "versions": method.versions,
        "about": _about(whole),
    }


def _about(instance: Instance) -> dict[str, Any]:
    """What a unit was about: equal for a bound and the runs below it."""
    return {
        "engine": instance.engine.name,
        "engine_hash": engine_hash(instance.engine),
        "requests_hash": requests_hash(instance),
        "score_rule": instance.score_rule.value,
    }


def _servable(instance: Instance, name: str) -> float:
    """Value of the requests of a class that an idle engine could attain."""
    return servable_value(
        instance.with_requests(tuple(r for r in instance.requests if instance.slo_of(r).name == name))
    )


def run_unit(inputs: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """The work of a run task; a plain JSON object."""
    instance = instance_of(inputs["instance"], place)
    options = SimulationOptions(**inputs["simulation"])
    if not options.acceptance:  # drafts may reach what no batch does
        check_attainable(instance)
    settings = policy_entry(inputs["policy"]).settings
    best: Run | None = None
    best_value, chosen = -1.0, 0
    values = []
    for number, setting in enumerate(settings if inputs["all_settings"] else settings[:1]):
        run = play(instance, inputs["policy"], setting, inputs["lengths"], options)
        value = math.fsum(
            instance.value_of(r) for r, on_time in zip(instance.requests, run.on_time, strict=True) if on_time
        )
        values.append(value)
        if value > best_value:
            best, best_value, chosen = run, value, number
    assert best is not None
    metrics = run_metrics(confirmed(best))
    return {
        "setting": dict(settings[chosen]),
        "values": values,
        **_figures(metrics.total),
        "classes": {row.name: _figures(row) for row in metrics.classes if row.offered},
        "drained": metrics.drained,
        "utilisation": metrics.utilisation,
        "num_preemptions": metrics.num_preemptions,
        "about": _about(instance),
    }


def _figures(row: ClassMetrics) -> dict[str, Any]:
    return {key: getattr(row, key) for key in ("offered", "admitted", "attained", "value", "offered_value")}
