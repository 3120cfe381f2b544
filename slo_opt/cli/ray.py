"""`slo-opt ray`: a fleet of vLLM replicas on Ray Serve, routed and scheduled by slo-opt."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import Engine, Quiet
from slo_opt.cli.route import DEFAULT_POLICY

if TYPE_CHECKING:
    from slo_opt.engine_bridge.ray_serve.plan import ServePlan

_SMALL = "small"  # the model that is made on the spot


def ray(
    model: Annotated[
        str, typer.Option(help="Folder or name of a model; small: one without weights, made here, for the CPU.")
    ] = _SMALL,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: the last part of it.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas at the start, and at least.", min=1, max=10_000)] = 2,
    max_replicas: Annotated[
        int | None, typer.Option(help="Replicas at most: more than --replicas lets Ray Serve scale.", min=1)
    ] = None,
    policy: Annotated[str, typer.Option(help="Routing policy by name, or module:Class.")] = DEFAULT_POLICY,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the policy; repeatable.")
    ] = None,
    engine: Engine = None,
    config: Annotated[
        Path | None, typer.Option(help="SLO classes: a TOML file, on every node; default: $SLO_OPT_CONFIG.")
    ] = None,
    vllm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of vLLM's engine, as in Python; repeatable.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Replicas on CPUs, one core each.")] = False,
    accelerator: Annotated[str | None, typer.Option(help="Kind of GPU to ask Ray for, for example H100.")] = None,
    address: Annotated[
        str, typer.Option(help="local: a cluster for this command; else auto, or HOST:PORT of a cluster.")
    ] = "local",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for everybody's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    routers: Annotated[int, typer.Option(help="Processes that take requests.", min=1)] = 1,
    max_hold: Annotated[float, typer.Option(help="Seconds that a request may be held back.")] = 60.0,
    stats_interval: Annotated[float, typer.Option(help="Seconds between two reports of a replica.")] = 0.5,
    upscale_delay: Annotated[float, typer.Option(help="Seconds of need before replicas are added.")] = 10.0,
    downscale_delay: Annotated[float, typer.Option(help="Seconds without need before some go.")] = 120.0,
    quiet: Quiet = False,
) -> None:
    """Serve a model with several replicas on a Ray cluster, through one OpenAI-compatible address.

    Prints the address once all replicas are ready, and runs until SIGTERM or Ctrl-C.
    """
    import logging
    import os
    import sys
    from contextlib import redirect_stdout
    from dataclasses import replace
    from functools import partial
    from tempfile import TemporaryDirectory

    from slo_opt.cli.route import engine_for
    from slo_opt.cli.simulate import parse_setting
    from slo_opt.engine_bridge.config import ENVIRONMENT_VARIABLE
    from slo_opt.engine_bridge.ray_serve.launch import LOCAL, require_ray, serve_fleet
    from slo_opt.engine_bridge.ray_serve.plan import ServePlan
    from slo_opt.routing.registry import prepare_routers

    named = str(config) if config is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    plan = ServePlan(
        _absolute(model),
        name or model.rstrip("/").rpartition("/")[2],
        replicas,
        max(replicas, max_replicas or replicas),
        policy,
        parse_setting(setting or []),
        None if engine is None else _absolute(engine),
        None if named is None else _absolute(named),
        _arguments(vllm or []),
        cpu or model == _SMALL,
        accelerator,
        routers,
        stats_interval,
        max_hold,
        upscale_delay,
        downscale_delay,
    )
    engine_for(plan.engine, plan.classes(), policy)
    plan.make_policy()
    require_ray()
    log = logging.getLogger("slo_opt")
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
    prepare_routers([policy], lambda phrase, _: log.info("slo-opt: %s", phrase))
    if host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("slo-opt: %s is open to others, without encryption or keys", host)
    log.info("slo-opt: %d replicas of %s start; this takes a minute or more", replicas, plan.name)
    answers = sys.stdout
    # Ray's own words go to stderr: scripts read the address.
    with redirect_stdout(sys.stderr), TemporaryDirectory(prefix="slo-opt-ray-", ignore_cleanup_errors=True) as folder:
        if address == LOCAL:
            plan = replace(plan, scratch=folder)
        if model == _SMALL:
            plan = _with_small_model(plan, Path(folder, _SMALL))
        serve_fleet(plan, address, host, port, partial(typer.echo, file=answers))


def _absolute(text: str) -> str:
    """The full path of what is a path here; a name as it is."""
    return str(Path(text).absolute()) if Path(text).exists() else text


def _arguments(texts: list[str]) -> dict[str, Any]:
    """Arguments of vLLM's engine; values are JSON, or text."""
    from slo_opt.domain.errors import InvalidInputError

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InvalidInputError(f"--vllm {text}: expected KEY=VALUE, for example max_num_seqs=64")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _with_small_model(plan: "ServePlan", folder: Path) -> "ServePlan":
    from dataclasses import replace

    from slo_opt.engine_bridge.small_model import write_small_model

    write_small_model(folder)
    return replace(plan, model=str(folder), vllm={"load_format": "dummy", **plan.vllm})
