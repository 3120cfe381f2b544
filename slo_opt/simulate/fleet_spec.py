"""What a fleet is made of, and what its simulation adds to that of one replica."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fleet import KvTransfer
from slo_opt.domain.instance import Instance
from slo_opt.policies.catalogue import Setting
from slo_opt.policies.interface import AllocationPolicy
from slo_opt.policies.lengths import make_lengths
from slo_opt.policies.registry import PolicyContext, make_policy
from slo_opt.routing.interface import Role
from slo_opt.simulate.autoscale import Autoscaler
from slo_opt.simulate.faults import Fault, check_faults
from slo_opt.simulate.options import SimulationOptions


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica.

    Parameters
    ----------
    engine : EngineModel
        What it runs.
    make_policy : callable
        Its scheduler, made afresh when the replica starts, and again after each failure.
    role : Role
        Whether it prefills, decodes, or both.
    """

    engine: EngineModel
    make_policy: Callable[[], AllocationPolicy]
    role: Role = Role.BOTH


def replica_spec(
    instance: Instance,
    policy: str,
    setting: Setting | None = None,
    lengths: str = "quantile",
    *,
    engine: EngineModel | None = None,
    role: Role = Role.BOTH,
) -> ReplicaSpec:
    """A replica from names. The same object may stand for several equal replicas: policies are not shared.

    Parameters
    ----------
    instance : Instance
        Its SLO classes; its requests, where lengths are known; its engine, unless another is given.
    policy, setting, lengths
        As for `play`.
    engine : EngineModel or None
        Instead of the engine of the instance.
    role : Role
        What it does.

    Raises
    ------
    InvalidInputError
        An unknown name, or a setting that the policy does not have.
    """
    model = engine or instance.engine

    def fresh() -> AllocationPolicy:
        context = PolicyContext(
            model, instance.slo_classes, make_lengths(lengths, instance), decodes=role is not Role.PREFILL
        )
        return make_policy(policy, context, setting)

    fresh()  # what is refused is refused here
    return ReplicaSpec(model, fresh, role)


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a fleet grows and shrinks.

    Parameters
    ----------
    autoscaler : Autoscaler
        Who decides; fresh, since it may remember.
    template : ReplicaSpec
        What is started.
    interval_s : float
        How often it is asked.
    start_up_s : float
        From the decision until the replica takes requests. It is paid for from the decision on.
    least, most : int
        Replicas, draining ones left out: no drain goes below, no start beyond.

    Raises
    ------
    InvalidInputError
        A figure means nothing.
    """

    autoscaler: Autoscaler
    template: ReplicaSpec
    interval_s: float = 1.0
    start_up_s: float = 30.0
    least: int = 1
    most: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.interval_s < math.inf or not 0 <= self.start_up_s < math.inf:
            raise InvalidInputError(
                f"scaling: interval_s {self.interval_s}, start_up_s {self.start_up_s}; expected seconds, the interval "
                "above 0"
            )
        if not 1 <= self.least <= self.most:
            raise InvalidInputError(f"scaling: {self.least} to {self.most} replicas; expected 1 <= least <= most")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How a fleet is simulated.

    Parameters
    ----------
    simulation : SimulationOptions
        Noise, model error and acceptance of every replica; its seed gives each replica its own random numbers.
    transfer : KvTransfer
        How long KV takes from a replica that prefills to one that decodes.
    report_every_s : float
        0: the router sees every replica as it is. Otherwise computed tokens, KV blocks and who runs are as of the
        latest report, sent at multiples of so many seconds; what passes through the router itself it knows at once.
    faults : tuple of Fault
        What goes wrong.
    scaling : Scaling or None
        None: the fleet stays as it is.

    Raises
    ------
    InvalidInputError
        `report_every_s` is no time, or a prefix cache is asked for.
    """

    simulation: SimulationOptions = field(default_factory=SimulationOptions)
    transfer: KvTransfer = field(default_factory=KvTransfer)
    report_every_s: float = 0.0
    faults: tuple[Fault, ...] = ()
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.report_every_s < math.inf:
            raise InvalidInputError(f"report_every_s is {self.report_every_s}; expected seconds >= 0")
        if self.simulation.prefix_cache:
            raise InvalidInputError("a prefix cache is simulated on one replica only; leave it off for a fleet")


def check_fleet(replicas: Sequence[ReplicaSpec], options: FleetOptions) -> None:
    """Refuse a fleet on which no request could ever end.

    Raises
    ------
    InvalidInputError
        No replica prefills; those that prefill have nobody to decode for them, or the reverse; faults of replicas that
        are not there.
    """
    check_faults(options.faults, len(replicas))
    scaling = options.scaling
    roles = {spec.role for spec in (*replicas, *([scaling.template] if scaling else []))}
    if not replicas:
        raise InvalidInputError("a fleet of no replicas; give at least one")
    if Role.PREFILL in roles and roles == {Role.PREFILL}:
        raise InvalidInputError("all replicas of the fleet prefill only; give it one that decodes")
    if Role.DECODE in roles and Role.PREFILL not in roles:
        raise InvalidInputError("a replica of the fleet decodes only, and none prefills for it; give it one that does")
