"""`slo-opt route`: a router in front of several OpenAI-compatible servers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slo_opt.cli.options import Quiet
from slo_opt.domain.engines import ENGINES
from slo_opt.routing.registry import ROUTERS

if TYPE_CHECKING:
    from slo_opt.domain.engine import EngineModel
    from slo_opt.engine_bridge.config import BridgeConfig

DEFAULT_POLICY = "slo-opt"
# They count requests, tokens and blocks; every other policy predicts when a replica could answer.
WITHOUT_ENGINE = ("round-robin", "least-loaded", "join-shortest-queue", "lmetric")


def route(
    replica: Annotated[
        list[str], typer.Option(metavar="URL", help="A server, for example http://127.0.0.1:8001; repeatable.")
    ],
    policy: Annotated[str, typer.Option(help=f"Who chooses: {', '.join(ROUTERS)}, or module:Class.")] = DEFAULT_POLICY,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the policy; repeatable.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"Batch times of the replicas: {', '.join(ENGINES)}, or a file that calibrate wrote; default: the "
            "configuration's."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="SLO classes: the TOML file of the replicas; default: $SLO_OPT_CONFIG.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for everybody's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for a free one.", min=0, max=65535)] = 8000,
    max_body_mib: Annotated[int, typer.Option(help="Longer requests are answered 413.", min=1, max=4096)] = 32,
    max_concurrency: Annotated[int, typer.Option(help="Requests at once; more are answered 503.", min=1)] = 1024,
    max_hold: Annotated[float, typer.Option(help="Seconds that a request may be held back.")] = 60.0,
    read_timeout: Annotated[float, typer.Option(help="Seconds for the head of a request, and for its body.")] = 15.0,
    connect_timeout: Annotated[float, typer.Option(help="Seconds for a connection to a replica.")] = 5.0,
    idle_timeout: Annotated[float, typer.Option(help="Seconds that a replica may be silent.")] = 600.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take.")] = 3600.0,
    probe_interval: Annotated[float, typer.Option(help="Seconds between two looks at a replica.")] = 1.0,
    probe_timeout: Annotated[float, typer.Option(help="Seconds that a replica may take to answer a look.")] = 5.0,
    drain: Annotated[float, typer.Option(help="Seconds for what is under way at SIGTERM or Ctrl-C.")] = 60.0,
    quiet: Quiet = False,
) -> None:
    """Send each request to the replica that can serve it on time, and on to another if that one refuses or fails.

    Requests and answers pass as they are. Prints the address once it is ready, and runs until SIGTERM or Ctrl-C.
    """
    import asyncio
    import logging
    import sys

    from slo_opt.cli.simulate import parse_setting
    from slo_opt.engine_bridge.config import config_from_environment, load_config
    from slo_opt.engine_bridge.router.options import RouterOptions, replica_urls
    from slo_opt.routing.registry import prepare_routers

    urls = replica_urls(replica)
    options = RouterOptions(
        max_body_bytes=max_body_mib << 20,
        max_concurrency=max_concurrency,
        max_hold_s=max_hold,
        read_timeout_s=read_timeout,
        connect_timeout_s=connect_timeout,
        idle_timeout_s=idle_timeout,
        total_timeout_s=timeout,
        probe_interval_s=probe_interval,
        probe_timeout_s=probe_timeout,
        drain_s=drain,
    )
    classes = config_from_environment() if config is None else load_config(config)
    model = engine_for(engine, classes, policy)
    _require_aiohttp()
    from slo_opt.engine_bridge.router.serve import RouterPlan, serve

    plan = RouterPlan(urls, model, policy, parse_setting(setting or []), classes, options)
    plan.make_policy()
    log = logging.getLogger("slo_opt")
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
    prepare_routers([policy], lambda phrase, _: log.info("slo-opt: %s", phrase))
    if host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("slo-opt: %s is open to others, without encryption or keys of the router's own", host)
    lost = asyncio.run(serve(plan, host, port, typer.echo))
    if lost:
        log.warning("slo-opt: %d requests were cut off", lost)


def engine_for(name: str | None, config: "BridgeConfig", policy: str) -> "EngineModel":
    """The engine model as asked for; a generic one for policies that do not look at its times.

    Raises
    ------
    InvalidInputError
        The policy predicts, and there is no engine to predict with.
    """
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.engine_bridge.calibrate import GENERIC
    from slo_opt.engine_bridge.config import LEARN
    from slo_opt.routing.registry import router_entry
    from slo_opt.traces.engine_file import engine_from

    router_entry(policy)
    given = name or (None if config.engine == LEARN else config.engine)
    if given is not None:
        return engine_from(given)
    slowdowns = [live.name for live in config.classes.values() if live.ttft_slowdown is not None]
    if policy not in WITHOUT_ENGINE:
        why, instead = f"--policy {policy} predicts batch times", f"take one of {', '.join(WITHOUT_ENGINE)}"
    elif slowdowns:
        why, instead = f"class {slowdowns[0]!r} has a ttft_slowdown", "give the class ttft_ms"
    else:
        return GENERIC
    raise InvalidInputError(
        f"{why}: give --engine, a built-in engine or the file that `slo-opt calibrate --url` wrote; or {instead}"
    )


def _require_aiohttp() -> None:
    from slo_opt.domain.errors import SolverNotAvailableError

    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise SolverNotAvailableError("route needs aiohttp; pip install 'slo-opt[live]'") from None
