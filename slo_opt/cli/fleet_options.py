"""A fleet on the command line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slo_opt.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from slo_opt.analysis.fleet_facts import FleetFacts, Value
    from slo_opt.domain.engine import EngineModel
    from slo_opt.domain.instance import Instance
    from slo_opt.routing.interface import Role
    from slo_opt.simulate.fleet_run import FleetRun
    from slo_opt.simulate.options import SimulationOptions

_MOST = 10_000


class FleetAsked:
    """A fleet as asked for.

    Parameters
    ----------
    replicas : str
        See `parse_replicas`.
    routers : tuple of str
        Names of routers that are to run before it.
    setting : mapping
        Of the routers.
    report_every_s : float
        Seconds between reports to the router.
    simulation : SimulationOptions
        Seed, noise, model error, acceptance.

    Raises
    ------
    InvalidInputError
        `report_every_s` is no time.
    """

    def __init__(
        self,
        replicas: str,
        routers: tuple[str, ...],
        setting: "Mapping[str, Value]",
        report_every_s: float,
        simulation: "SimulationOptions",
    ) -> None:
        from slo_opt.simulate.fleet_spec import FleetOptions

        self._replicas = replicas
        self._routers = routers
        self._setting = setting
        self._options = FleetOptions(simulation, report_every_s=report_every_s)

    def check(self, instance: "Instance") -> None:
        """Refuse replicas and settings that mean nothing, before any run.

        Raises
        ------
        InvalidInputError
            See `parse_replicas` and `make_router`.
        """
        from slo_opt.policies.lengths import NoLengths
        from slo_opt.routing.registry import RoutingContext, make_router

        parse_replicas(self._replicas, instance.engine)
        for name in self._routers:
            make_router(name, RoutingContext(instance.slo_classes, NoLengths()), self._setting)

    def serve(
        self, instance: "Instance", router: str, policy: str, setting: "Mapping[str, Value]", lengths: str
    ) -> "tuple[FleetRun, FleetFacts]":
        """One run, and what its record says of the fleet."""
        from slo_opt.analysis.fleet_facts import fleet_facts
        from slo_opt.simulate.play_fleet import play_fleet

        run = play_fleet(
            instance,
            parse_replicas(self._replicas, instance.engine),
            router,
            policy,
            router_setting=self._setting,
            setting=setting,
            lengths=lengths,
            options=self._options,
        )
        return run, fleet_facts(run, self._setting, self._options)


def parse_replicas(text: str, engine: "EngineModel") -> "list[tuple[EngineModel, Role]]":
    """Read ``4``, or ``2:1`` for replicas that prefill and that decode, or a comma list of ``ENGINE=4``.

    Parameters
    ----------
    text : str
        What was typed.
    engine : EngineModel
        Of replicas that name none.

    Raises
    ------
    InvalidInputError
        It is anything else, or an engine is unknown.
    """
    from slo_opt.routing.interface import Role
    from slo_opt.traces.engine_file import engine_from

    if "=" in text:
        parts = [part.rpartition("=") for part in text.split(",") if part.strip()]
        return [(model, Role.BOTH) for name, _, n in parts for model in [engine_from(name.strip())] * _count(n, text)]
    prefill, colon, decode = text.partition(":")
    if colon:
        return [(engine, Role.PREFILL)] * _count(prefill, text) + [(engine, Role.DECODE)] * _count(decode, text)
    return [(engine, Role.BOTH)] * _count(text, text)


def _count(text: str, whole: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= _MOST:
        raise InvalidInputError(
            f"--replicas {whole}: expected a number of replicas in [1, {_MOST}], PREFILL:DECODE such as 2:1, or a "
            "comma list of ENGINE=NUMBER"
        )
    return count


def parse_routers(text: str) -> tuple[str, ...]:
    """Read a comma list of routers.

    Raises
    ------
    InvalidInputError
        It names none, or one that does not exist.
    """
    from slo_opt.cli.inputs import names_in
    from slo_opt.routing.registry import CATALOGUE

    return names_in(text, CATALOGUE)
