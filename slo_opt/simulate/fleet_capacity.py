"""Capacity of a fleet: the highest request rate that it sustains, at the best of several designs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.policies.registry import full_setting, policy_entry
from slo_opt.routing.interface import Role
from slo_opt.routing.registry import full_router_setting, router_entry
from slo_opt.simulate.capacity import Capacity, CapacityOptions, search_settings
from slo_opt.simulate.fleet_spec import FleetOptions
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.play_fleet import play_fleet
from slo_opt.simulate.run import Run
from slo_opt.simulate.workload import Workload


@dataclass(frozen=True, slots=True)
class FleetDesign:
    """How many replicas of which kind, and who decides. All run the engine of the workload.

    Parameters
    ----------
    router, policy : str
        Names in `ROUTERS` and `POLICIES`; the policy is that of every replica.
    num_both, num_prefill, num_decode : int
        Replicas by role.
    router_setting, setting : mapping
        Of router and policy, where they differ from the default.

    Raises
    ------
    InvalidInputError
        An unknown name or setting, or no replica.
    """

    router: str
    policy: str
    num_both: int = 0
    num_prefill: int = 0
    num_decode: int = 0
    router_setting: Mapping[str, Any] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        full_router_setting(self.router, self.router_setting)
        full_setting(self.policy, self.setting)
        if min(self.num_both, self.num_prefill, self.num_decode) < 0 or not self.num_replicas:
            raise InvalidInputError(
                f"a fleet of {self.num_both} replicas for both, {self.num_prefill} for prefill and {self.num_decode} "
                "for decode; expected numbers >= 0, one of them above"
            )

    @property
    def num_replicas(self) -> int:
        """All of them."""
        return self.num_both + self.num_prefill + self.num_decode

    def replicas(self, engine: EngineModel) -> list[tuple[EngineModel, Role]]:
        """Each replica, as `play_fleet` takes it."""
        roles = ((Role.BOTH, self.num_both), (Role.PREFILL, self.num_prefill), (Role.DECODE, self.num_decode))
        return [(engine, role) for role, count in roles for _ in range(count)]


def designs_of(
    router: str, policy: str, num_replicas: int, splits: Sequence[tuple[int, int]] = ()
) -> tuple[FleetDesign, ...]:
    """Every static setting of a router with every one of a policy, the default ones first.

    Parameters
    ----------
    router, policy : str
        Names.
    num_replicas : int
        How many there are.
    splits : sequence of (int, int)
        Replicas that prefill and replicas that decode, each pair another design; empty: co-located.
    """
    kinds: Sequence[Mapping[str, int]] = [{"num_prefill": p, "num_decode": d} for p, d in splits]
    return tuple(
        FleetDesign(router, policy, router_setting=routing, setting=setting, **kind)
        for routing in router_entry(router).settings
        for setting in policy_entry(policy).settings
        for kind in kinds or [{"num_both": num_replicas}]
    )


def find_fleet_capacity(
    workload: Workload,
    designs: Sequence[FleetDesign],
    options: CapacityOptions | None = None,
    fleet: FleetOptions | None = None,
) -> Capacity:
    """Highest rate of the whole fleet, over all designs, as `find_capacity` finds it for one replica.

    Parameters
    ----------
    workload : Workload
        Its rate is not used; a window of a trace holds the same requests at every rate.
    designs : sequence of FleetDesign
        What to choose from, the default first.
    options : CapacityOptions or None
        None: the defaults.
    fleet : FleetOptions or None
        KV transfer, reports; its `simulation` is not used.

    Raises
    ------
    InvalidInputError
        No design; a target or tolerance out of range; no request that the engine could ever attain.
    IllegalAllocationError, IllegalPlacementError, IllegalRunError
        A defect of a policy, of a router or of the simulator.
    """
    if not designs:
        raise InvalidInputError("no design of a fleet is given; give at least one")
    options = options or CapacityOptions()

    def run(instance: Instance, number: int, simulation: SimulationOptions) -> Run:
        design = designs[number]
        return play_fleet(
            instance,
            design.replicas(instance.engine),
            design.router,
            design.policy,
            router_setting=design.router_setting,
            setting=design.setting,
            lengths=options.lengths,
            options=replace(fleet or FleetOptions(), simulation=simulation),
        )

    most = max(design.num_replicas for design in designs)
    return search_settings(workload, [asdict(design) for design in designs], run, options, most)
