"""One run of a fleet from names: its replicas, their policy, the router."""

from collections.abc import Sequence

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.policies.catalogue import Setting
from slo_opt.policies.lengths import make_lengths
from slo_opt.policies.registry import prepare
from slo_opt.routing.interface import Role
from slo_opt.routing.registry import RoutingContext, make_router, prepare_routers
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_run import FleetRun
from slo_opt.simulate.fleet_spec import FleetOptions, replica_spec


def play_fleet(
    instance: Instance,
    replicas: Sequence[tuple[EngineModel, Role]],
    router: str,
    policy: str,
    *,
    router_setting: Setting | None = None,
    setting: Setting | None = None,
    lengths: str = "quantile",
    options: FleetOptions | None = None,
) -> FleetRun:
    """Serve an instance with a fresh fleet.

    Parameters
    ----------
    instance : Instance
        Requests and SLOs.
    replicas : sequence of (EngineModel, Role)
        What each replica is.
    router : str
        Name in `ROUTERS`.
    policy : str
        Name in `POLICIES`, of the scheduler of every replica.
    router_setting, setting : mapping or None
        Instead of the default settings of router and policy, key by key.
    lengths : str
        Name in `LENGTHS`: what router and policies know of output lengths, each for itself.
    options : FleetOptions or None
        Seed, KV transfer, reports, faults, scaling.

    Raises
    ------
    InvalidInputError
        An unknown name, a setting that is not known, or a fleet on which no request could ever end.
    IllegalAllocationError, IllegalPlacementError
        A defect of the policy or of the router.
    """
    prepare([policy])
    prepare_routers([router])
    specs = {
        (engine, role): replica_spec(instance, policy, setting, lengths, engine=engine, role=role)
        for engine, role in replicas
    }
    chosen = make_router(router, RoutingContext(instance.slo_classes, make_lengths(lengths, instance)), router_setting)
    return simulate_fleet(instance, [specs[key] for key in replicas], chosen, options)
