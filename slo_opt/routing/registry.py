"""Routing policies by name, with the static settings among which a fair comparison takes the best."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import SloClass
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.policies.settings import check_setting, defaults_of
from slo_opt.routing.interface import RoutingPolicy
from slo_opt.traces.nearest import did_you_mean

Setting = Mapping[str, Any]


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


@dataclass(frozen=True, slots=True)
class RouterEntry:
    """A routing policy that can be named.

    Parameters
    ----------
    name, summary : str
        What users type, and one line about it.
    factory : str
        ``module:Class``; the class takes a `RoutingContext` and the keywords of one setting.
    settings : tuple of mapping
        Static settings to try, the default first.
    compiles : bool
        Whether it plans with the DP, whose kernels are compiled once a machine: see `prepare_routers`.
    """

    name: str
    summary: str
    factory: str
    settings: tuple[Setting, ...] = field(default=({},))
    compiles: bool = False


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
        ({"plan": True, "hold": True}, {"plan": True, "hold": False}, {"plan": False, "hold": True}),
        compiles=True,
    ),
)
ROUTERS = {entry.name: entry for entry in _ALL}


def router_entry(name: str) -> RouterEntry:
    """The routing policy of that name, or a class of one's own as ``module:Class``.

    Raises
    ------
    InvalidInputError
        There is none; the message suggests the nearest.
    """
    if ":" in name:
        return RouterEntry(name, "a router of one's own", name, compiles=True)
    if name not in ROUTERS:
        raise InvalidInputError(
            f"unknown router {name!r}. {did_you_mean(name, ROUTERS)}Known: {', '.join(ROUTERS)}, or module:Class"
        )
    return ROUTERS[name]


def _factory(entry: RouterEntry) -> Any:
    module, _, attribute = entry.factory.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        if entry.name in ROUTERS:
            raise
        raise InvalidInputError(
            f"router {entry.name!r} cannot be loaded: {error}; expected module:Class, with the module on Python's path"
        ) from error


def prepare_routers(names: Iterable[str], announce: Callable[[str, None], None] | None = None) -> None:
    """Compile what these routers need before their decisions are timed; quick where that has been done.

    Parameters
    ----------
    names : iterable of str
        Of routers.
    announce : callable or None
        Told what happens, before it does.

    Raises
    ------
    InvalidInputError
        An unknown name.
    """
    entries = [router_entry(name) for name in names]
    if not any(entry.compiles for entry in entries):
        return
    if announce is not None:
        announce("compiling the admission planner, once a machine", None)
    from slo_opt.policies.admission import compile_planner

    compile_planner()


def full_router_setting(name: str, setting: Setting | None = None) -> dict[str, Any]:
    """Every keyword that the router runs with: its constructor's defaults, its default setting, then `setting`."""
    entry = router_entry(name)
    return {**defaults_of(_factory(entry)), **entry.settings[0], **(setting or {})}


def make_router(name: str, context: RoutingContext, setting: Setting | None = None) -> RoutingPolicy:
    """A fresh router; `setting` overrides its default one.

    Raises
    ------
    InvalidInputError
        Unknown name, or a setting that the router does not have or refuses.
    """
    entry = router_entry(name)
    factory = _factory(entry)
    keywords = {**entry.settings[0], **(setting or {})}
    check_setting(name, factory, keywords)
    router: RoutingPolicy = factory(context, **keywords)
    return router
