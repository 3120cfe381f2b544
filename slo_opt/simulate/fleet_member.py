"""One replica of a fleet under simulation: its server, what the router knows of it, and when it is there."""

import math

from slo_opt.domain.fleet import FleetReplica
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.simulate.autoscale import Served
from slo_opt.simulate.fleet_spec import FleetOptions, ReplicaSpec
from slo_opt.simulate.fleet_view import ExactWatcher, ReportWatcher, Watcher
from slo_opt.simulate.life import Life
from slo_opt.simulate.recorder import Recorder
from slo_opt.simulate.replica import Replica, fits
from slo_opt.simulate.server import Server


def suits(spec: ReplicaSpec, life: Life, decoding: bool) -> bool:
    """Whether such a replica could ever take a request.

    Parameters
    ----------
    spec : ReplicaSpec
        The replica.
    life : Life
        The request.
    decoding : bool
        Whether its prompt has been prefilled elsewhere.
    """
    if spec.role is (Role.PREFILL if decoding else Role.DECODE):
        return False
    return fits(spec.engine, life, prefill_only=spec.role is Role.PREFILL)


class Member:
    """State of a replica, beside that of its engine.

    Parameters
    ----------
    number : int
        In the schedule.
    spec : ReplicaSpec
        What it is.
    options : FleetOptions
        Of the fleet.
    recorder : Recorder
        Of the fleet.
    since_s : float
        When it was asked for.

    Attributes
    ----------
    id : str
        ``r`` and the number.
    server, watcher
        The engine, and the view of it.
    up : bool
        Whether it serves: it has started and has not failed.
    draining : bool
        Whether it leaves when it is empty.
    left_s : float
        When it left; infinite while it has not.
    cut_until_s : float
        Until when the router does not reach it.
    factor : float
        By which its batches are slowed down.
    wake_s : float
        When its policy wants to be asked again.
    coming : dict of int to Life
        Requests whose KV is on its way here.
    num_lent : int
        Requests that have left and whose KV it still holds.
    reporting : bool
        Whether a report is due at the next moment for reports.
    served : Served
        What it did since the autoscaler was last asked.
    """

    def __init__(
        self, number: int, spec: ReplicaSpec, options: FleetOptions, recorder: Recorder, since_s: float
    ) -> None:
        self.number = number
        self.id = f"r{number}"
        self.spec = spec
        simulation = options.simulation
        replica = Replica(
            spec.engine, spec.make_policy(), simulation.acceptance, prefill_only=spec.role is Role.PREFILL
        )
        self.server = Server(replica, simulation, recorder, number)
        self.coming: dict[int, Life] = {}
        view = ReplicaView(self.id, spec.engine, spec.role)
        watch = ReportWatcher if options.report_every_s else ExactWatcher
        self.watcher: Watcher = watch(view, self.server, self.coming.values())
        self.since_s = since_s
        self.left_s = math.inf
        self.up = False
        self.draining = False
        self.cut_until_s = -math.inf
        self.factor = 1.0
        self.wake_s = math.inf
        self.num_lent = 0
        self.reporting = False
        self.served = Served()
        self._up_since_s = math.inf
        self._up_s: list[tuple[float, float]] = []

    @property
    def replica(self) -> Replica:
        """The jobs in it."""
        return self.server.replica

    @property
    def view(self) -> ReplicaView:
        """What the router knows of it."""
        return self.watcher.view

    @property
    def empty(self) -> bool:
        """Whether nobody needs it any more."""
        return self.replica.idle and not (self.coming or self.num_lent)

    def reachable(self, now_s: float) -> bool:
        """Whether the router can send requests there."""
        return self.up and not self.draining and now_s >= self.cut_until_s

    def start(self, now_s: float) -> None:
        """It serves from now on."""
        self.up, self._up_since_s = True, now_s

    def stop(self, now_s: float) -> None:
        """It no longer serves."""
        self.up = False
        self._up_s.append((self._up_since_s, now_s))
        self.wake_s = math.inf

    def crash(self, now_s: float) -> tuple[list[Life], list[Life]]:
        """Fail; who was in it, and whose KV is lost, of those and of those that had been sent away."""
        self.stop(now_s)
        found = self.server.crash(self.spec.make_policy())
        self.watcher.report()
        self.watcher.changed()
        return found

    def count(self, tokens: int, busy_s: float) -> None:
        """Add a batch to what it did."""
        done = self.served
        self.served = Served(done.num_batches + 1, done.num_tokens + tokens, done.busy_s + busy_s)

    def facts(self) -> FleetReplica:
        """For the checker: its engine, and when it served."""
        up_s = [*self._up_s, (self._up_since_s, math.inf)] if self.up else self._up_s
        return FleetReplica(self.id, self.spec.engine, tuple(up_s))
