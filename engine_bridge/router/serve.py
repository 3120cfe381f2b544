"""Runs a router until it is told to stop."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.router.connection import TimedServer
from slo_opt.engine_bridge.router.fleet import Fleet
from slo_opt.engine_bridge.router.forward import make_session
from slo_opt.engine_bridge.router.metrics import RouterMetrics
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.replica import Replica
from slo_opt.engine_bridge.router.service import Router
from slo_opt.engine_bridge.router.watch import Watch
from slo_opt.policies.lengths import QuantileLengths
from slo_opt.routing.interface import RoutingPolicy
from slo_opt.routing.registry import RoutingContext, make_router

_CLOSING_S = 1.0
_log = logging.getLogger("slo_opt")


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """Everything that makes a router.

    Parameters
    ----------
    replicas : sequence of str
        As `replica_urls` gives them.
    engine : EngineModel
        Batch times of every replica; its limits too, as far as the replica does not tell its own.
    policy : str
        Name of a routing policy, or ``module:Class``.
    setting : mapping
        Keywords of the policy.
    config : BridgeConfig
        Names the SLO classes.
    options : RouterOptions
        Limits.
    """

    replicas: Sequence[str]
    engine: EngineModel
    policy: str = "slo-opt"
    setting: Mapping[str, Any] = field(default_factory=dict)
    config: BridgeConfig = field(default_factory=BridgeConfig)
    options: RouterOptions = field(default_factory=RouterOptions)

    def make_policy(self) -> RoutingPolicy:
        """A fresh policy.

        Raises
        ------
        InvalidInputError
            An unknown name or setting.
        """
        return make_router(self.policy, RoutingContext(self.config.slo_classes(), QuantileLengths()), self.setting)


@dataclass(frozen=True, slots=True)
class Running:
    """A router that takes requests.

    Parameters
    ----------
    router : Router
        Itself.
    url : str
        Where it listens.
    """

    router: Router
    url: str


@asynccontextmanager
async def running(plan: RouterPlan, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Running]:
    """Take requests until the block ends. What is under way then is cut off: `Router.drain` first.

    A policy that compiles does so while requests wait, unless `slo_opt.routing.registry.prepare_routers` went before.

    Parameters
    ----------
    plan : RouterPlan
        What to run.
    host, port : str, int
        Where to listen; port 0 takes a free one.

    Raises
    ------
    InvalidInputError
        It cannot listen there, or the policy cannot be made.
    """
    options = plan.options
    metrics = RouterMetrics(plan.config.classes, plan.replicas)
    replicas = [Replica(url, plan.engine, plan.config.default_class, options) for url in plan.replicas]
    fleet = Fleet(replicas, plan.make_policy(), metrics, options.max_hold_s)
    probes = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), cookie_jar=aiohttp.DummyCookieJar()
    )
    async with make_session(options) as session, probes:
        watch = Watch(fleet, probes, options)
        router = Router(fleet, session, plan.config, plan.engine, options, metrics)
        server = TimedServer(router.handle, head_timeout_s=options.read_timeout_s, keep_alive_s=options.keep_alive_s)
        runner = web.ServerRunner(server, shutdown_timeout=_CLOSING_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=1024)
            try:
                await site.start()
            except OSError as error:
                raise InvalidInputError(
                    f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another"
                ) from None
            bound = runner.addresses[0]
            name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            url = f"http://{name}:{bound[1]}"
            if url in plan.replicas:
                raise InvalidInputError(f"--replica {url} is the router itself; choose another --port")
            await watch.first_look()
            watching = asyncio.create_task(watch.run())
            try:
                yield Running(router, url)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
            await runner.cleanup()


async def serve(plan: RouterPlan, host: str, port: int, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or Ctrl-C, then finish what is under way; a second signal cuts it off.

    Parameters
    ----------
    plan : RouterPlan
        What to run.
    host, port : str, int
        Where to listen.
    announce : callable
        Told where, once it is ready.

    Returns
    -------
    int
        Requests that were cut off.
    """
    told = asyncio.Event()
    again = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        (again if told.is_set() else told).set()

    for sign in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(sign, stop)
    async with running(plan, host, port) as found:
        announce(found.url)
        await told.wait()
        _log.info("slo-opt: %d requests are under way, no more are taken", found.router.in_flight)
        draining = asyncio.create_task(found.router.drain(plan.options.drain_s))
        cutting = asyncio.create_task(again.wait())
        await asyncio.wait({draining, cutting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, cutting):
            task.cancel()
        await asyncio.gather(draining, cutting, return_exceptions=True)
        return found.router.in_flight
