"""slo-opt's own routing: least marginal cost among the replicas whose plan can take the request."""

from collections.abc import Sequence

from slo_opt.policies.interface import Job, RoundEnd, Standing
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.dp_admission import ReplicaAdmission
from slo_opt.routing.hopeful import fewest_requests, latest_start_s
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.marginal_cost import MarginalCost
from slo_opt.routing.registry import RoutingContext


class SloOptRouter:
    """Where it costs least, among those whose plan still serves everyone.

    1. Replicas by what the request would cost them in engine time, KV memory and sequences, each priced by how scarce
       it is there (`slo_opt.routing.marginal_cost`): an affinity of tiers without a partition.
    2. The first of the cheapest whose admission plan takes it beside all it has (`slo_opt.routing.dp_admission`).
    3. Where none does, it goes to where it costs least, undecided: the replica may know better than a plan made from
       outside. Held at the router instead, a burst that is declined comes back all at once when it is nearly late.
    4. Hopeless, it is best effort on the replica with the fewest requests.

    Parameters
    ----------
    context : RoutingContext
        Length knowledge.
    steepness : float
        See `MarginalCost`.
    backlog_s : float
        See `MarginalCost`.
    tries_replicas : int
        How many are asked, the cheapest first.
    plan : bool
        The plan decides who can take it, which suits replicas that plan as well and give up what is late. Otherwise
        `Forecast.attainable` decides, for replicas that serve what they are sent, first come first served.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4 (the plan); Awerbuch, Azar and Plotkin, FOCS 1993 (the prices).
    """

    name = "slo-opt"

    def __init__(
        self,
        context: RoutingContext,
        steepness: float = 3.0,
        backlog_s: float = 3.0,
        tries_replicas: int = 4,
        plan: bool = True,
    ) -> None:
        self._lengths = context.lengths
        self._forecast = Forecast(context.lengths)
        self._admission = ReplicaAdmission(context.lengths, "growth", self._forecast)
        self._cost = MarginalCost(self._forecast, steepness, backlog_s)
        self._tries = max(1, tries_replicas)
        self._plan = plan

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        """The cheapest that can take it."""
        if job.standing is Standing.BEST_EFFORT or latest_start_s(job, replicas) < now_s:
            return Placement(fewest_requests(replicas).id, best_effort=True)
        costs = {view.id: self._cost.of(job, view) for view in replicas}
        order = sorted(replicas, key=lambda view: costs[view.id])
        takes = self._admission.accepts if self._plan else self._forecast.attainable
        for view in order[: self._tries]:
            if takes(job, view, now_s):
                return Placement(view.id)
        return Placement(order[0].id)

    def observe(self, end: RoundEnd) -> None:
        """Learn its length."""
        self._lengths.observe(end)
