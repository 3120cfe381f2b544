"""Routing policies by name, with the static settings among which a fair comparison takes the best."""

from collections.abc import Mapping
from dataclasses import dataclass

from slo_opt.domain.slo import SloClass
from slo_opt.policies.catalogue import Catalogue, Entry, Setting
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.routing.interface import RoutingPolicy


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """What a routing policy may know before the first request.

    Parameters
    ----------
    slo_classes : mapping of str to SloClass
        The classes that it will meet.
    lengths : LengthPredictor
        What it may know of output lengths; not shared with other policies, since it learns.
    """

    slo_classes: Mapping[str, SloClass]
    lengths: LengthPredictor


RouterEntry = Entry
_ALL = (
    RouterEntry(
        "round-robin",
        "each replica in turn",
        "slo_opt.routing.round_robin:RoundRobinRouter",
    ),
    RouterEntry(
        "least-loaded",
        "fewest requests, each weighted by the share of the KV cache that its context takes",
        "slo_opt.routing.least_loaded:LeastLoadedRouter",
    ),
    RouterEntry(
        "join-shortest-queue",
        "fewest requests, running and waiting",
        "slo_opt.routing.join_shortest_queue:JoinShortestQueueRouter",
    ),
    RouterEntry(
        "lmetric",
        "LMetric: least product of tokens to prefill and requests",
        "slo_opt.routing.lmetric:LMetricRouter",
    ),
    RouterEntry(
        "llm-d-best-fit",
        "llm-d: least headroom under the SLO that is still positive",
        "slo_opt.routing.llm_d:LlmDRouter",
        tuple({"buffer": buffer, "best_fit": True} for buffer in (1.0, 0.9, 0.8)),
    ),
    RouterEntry(
        "llm-d-worst-fit",
        "llm-d: most headroom under the SLO",
        "slo_opt.routing.llm_d:LlmDRouter",
        tuple({"buffer": buffer, "best_fit": False} for buffer in (1.0, 0.9, 0.8)),
    ),
    RouterEntry(
        "aibrix-pack-load",
        "AIBrix: most utilised replica under a cap, or always the least utilised",
        "slo_opt.routing.aibrix:AibrixRouter",
        (
            {"cap": 0.8, "pack": True},
            {"cap": 0.6, "pack": True},
            {"cap": 1.0, "pack": True},
            {"cap": 0.8, "pack": False},
        ),
    ),
    RouterEntry(
        "slos-serve",
        "SLOs-Serve: a replica's admission DP, the next replica on decline, best effort at the last",
        "slo_opt.routing.slos_serve:SlosServeRouter",
        ({"growth": False}, {"growth": True}),
        compiles=True,
    ),
    RouterEntry(
        "polyserve",
        "PolyServe: own tier, most loaded that still attains it, then tighter tiers, then idle replicas, else wait",
        "slo_opt.routing.polyserve:PolyServeRouter",
    ),
    RouterEntry(
        "slo-opt",
        "this project's own: least marginal cost of engine time and KV among replicas whose plan can take it",
        "slo_opt.routing.slo_opt:SloOptRouter",
        ({"plan": True}, {"plan": False}, {"plan": False, "steepness": 6.0}),
        compiles=True,
    ),
)
ROUTERS = {entry.name: entry for entry in _ALL}
CATALOGUE = Catalogue("router", ROUTERS)
router_entry = CATALOGUE.entry
prepare_routers = CATALOGUE.prepare
full_router_setting = CATALOGUE.full_setting


def make_router(name: str, context: RoutingContext, setting: Setting | None = None) -> RoutingPolicy:
    """A fresh router; `setting` overrides its default one.

    Raises
    ------
    InvalidInputError
        Unknown name, or a setting that the router does not have or refuses.
    """
    made: RoutingPolicy = CATALOGUE.make(name, context, setting)
    return made
