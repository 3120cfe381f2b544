"""Ray Serve LLM's ingress and server with slo-opt in them. Loads vLLM; knows Ray's classes as they are in 2.60."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, generate_latest
from ray.exceptions import RayActorError
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from ray.llm._internal.serve.core.ingress.ingress import JSONResponse, OpenAiIngress
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app
from ray.serve.llm.deployment import LLMServer
from vllm.platforms import current_platform

from slo_opt.engine_bridge.config import ENVIRONMENT_VARIABLE
from slo_opt.engine_bridge.metrics_directory import OWN_DIRECTORY
from slo_opt.engine_bridge.ray_serve.alpha import ID_FIELD, SloRequestRouter, scale
from slo_opt.engine_bridge.ray_serve.arrival import read_arrival
from slo_opt.engine_bridge.ray_serve.demand import PRESSURE
from slo_opt.engine_bridge.ray_serve.desk import Desk, desk_of
from slo_opt.engine_bridge.ray_serve.gauge import PressureGauge
from slo_opt.engine_bridge.ray_serve.plan import CPU_ARGUMENTS, ServePlan
from slo_opt.engine_bridge.ray_serve.stats import ReplicaStats
from slo_opt.engine_bridge.router.reports import read_report
from slo_opt.engine_bridge.router.stream_meter import StreamMeter
from slo_opt.engine_bridge.slo_fields import SloFieldError

SCHEDULER = "slo_opt.engine_bridge.make_scheduler"
# One thread each: with two, any other load makes each of them wait for the other.
CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_MOST_TRIES = 3


class SloIngress(OpenAiIngress):  # type: ignore[misc]
    """Ray's OpenAI-compatible front with slo-opt's SLO fields, and books of the tokens that pass.

    Parameters
    ----------
    plan : dict
        What `ServePlan.to_dict` gave.
    """

    def __init__(self, *args: Any, plan: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk: Desk = desk_of(plan)

    async def _process_llm_request(self, *args: Any, **kwargs: Any) -> Any:
        """Ray's own, with errors as vLLM words them: Ray's repeat each message three times."""
        try:
            return await super()._process_llm_request(*args, **kwargs)
        except OpenAIHTTPException as error:
            return JSONResponse(_error(error.message, error.type, error.status_code), error.status_code)

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Any = None) -> AsyncGenerator[Any, None]:
        """Ray's own, with a request that is announced, metered, and sent elsewhere if its replica dies too early."""
        id = await self._announce(body, raw_request)
        meter = _Meter(self._desk, id)
        try:
            for tries_left in reversed(range(_MOST_TRIES)):
                answer = super()._get_response(body=body, call_method=call_method, raw_request=raw_request)
                try:
                    async with aclosing(answer):
                        async for piece in answer:
                            meter.feed(piece)
                            yield piece
                    meter.end()
                    return
                except RayActorError:
                    self._desk.take_back(id, time.monotonic())
                    if meter.begun and getattr(body, "stream", False):
                        yield _broken_off()
                        return
                    if meter.begun or not tries_left:
                        raise
        finally:
            self._desk.leave(id, time.monotonic())

    async def _announce(self, body: Any, raw_request: Any) -> str:
        """Tell the desk of a request, and write the fields of its headers into it."""
        now_s = time.monotonic()
        path, headers, text = "", [], b""
        if raw_request is not None:
            path, headers, text = raw_request.url.path, raw_request.headers.raw, await raw_request.body()
        try:
            arrival = read_arrival(path, headers, text, self._desk.config)
        except SloFieldError as error:
            raise OpenAIHTTPException(400, str(error), "BadRequestError") from None
        if arrival.arguments is not None:
            body.vllm_xargs = arrival.arguments
        id = self._desk.arrive(arrival, now_s)
        setattr(body, ID_FIELD, id)
        return id


class _Meter:
    """Counts what passes to a client, and tells the desk."""

    def __init__(self, desk: Desk, id: str) -> None:
        self._desk = desk
        self._id = id
        self._stream = StreamMeter()
        self._tokens = 0
        self._prompt_tokens: int | None = None
        self.begun = False

    def feed(self, piece: Any) -> None:
        """A piece of an answer: text of a stream, a list of such texts, or a whole answer."""
        self.begun = True
        texts = piece if isinstance(piece, list) else [piece]
        tokens = sum(self._stream.feed(text.encode()) for text in texts if isinstance(text, str))
        if tokens:
            self._desk.pass_on(self._id, tokens, time.monotonic())
        usage = getattr(piece, "usage", None)
        if usage is not None:
            self._tokens = usage.completion_tokens or 0
            self._prompt_tokens = usage.prompt_tokens

    def end(self) -> None:
        """The answer came to its end."""
        stream = self._stream
        self._desk.leave(
            self._id,
            time.monotonic(),
            tokens=0 if stream.failed else stream.tokens or self._tokens,
            prompt_tokens=stream.prompt_tokens or self._prompt_tokens,
        )


def _broken_off() -> str:
    error = _error("the replica was lost while it answered; send the request again", "ServerError", 502)
    return f"data: {json.dumps(error)}\n\n"


def _error(message: str, kind: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class _Engine(VLLMEngine):  # type: ignore[misc]
    """Ray's, but on CPUs it computes where it schedules: Ray asks for two processes, which spin on a core each."""

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, placement_group: Any) -> Any:
        if current_platform.is_cpu() and engine_config.parallel_config.world_size == 1:
            engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(engine_args, engine_config, placement_group)


class SloServer(LLMServer):  # type: ignore[misc]
    """Ray's LLM server that tells routers how its engine stands, and the autoscaler how hard pressed it is."""

    _default_engine_cls = _Engine
    _gauge: PressureGauge

    async def start(self) -> None:
        """Start the engine."""
        await super().start()
        self._gauge = PressureGauge()

    async def __del__(self) -> None:
        """End the engine; called by Ray when a replica goes, which would otherwise leave shared memory and files."""
        await super().__del__()
        client = self._client()
        if client is not None:
            await asyncio.to_thread(client.shutdown)
        _unlink_shared_memory()
        shutil.rmtree(os.environ.get(OWN_DIRECTORY, ""), ignore_errors=True)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Ray's own, with the request's limits noted while it is here."""
        return self._noted(request, await super().chat(request, raw_request_info))

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Ray's own, with the request's limits noted while it is here."""
        return self._noted(request, await super().completions(request, raw_request_info))

    async def _noted(self, request: Any, answer: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        with self._gauge.holds(getattr(request, "vllm_xargs", None)):
            async for piece in answer:
                yield piece

    async def record_routing_stats(self) -> dict[str, Any]:
        """Asked by Ray: what routers should know."""
        own = await super().record_routing_stats()
        at_s = time.time()
        report = read_report(await _metrics())
        return {**own, **ReplicaStats(at_s, report, self._max_model_len()).to_dict()}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Ray: what the autoscaler should know."""
        return {PRESSURE: self._gauge.read(await _metrics())}

    def _max_model_len(self) -> int | None:
        return getattr(getattr(self._client(), "model_config", None), "max_model_len", None)

    def _client(self) -> Any:
        return getattr(getattr(self, "engine", None), "_engine_client", None)


class _OnDisk(CallbackBase):  # type: ignore[misc]
    """For a model in a folder: without the task that would download it, in a process that first loads vLLM."""

    def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


def _unlink_shared_memory() -> None:
    """Let the process that looks after shared memory do it now: Ray kills it with the replica."""
    stop = getattr(resource_tracker._resource_tracker, "_stop", None)
    if stop is not None:
        stop()


async def _metrics() -> str:
    return await asyncio.to_thread(lambda: generate_latest(REGISTRY).decode())


def build(plan: ServePlan) -> Any:
    """The application for `ray.serve.run`.

    Parameters
    ----------
    plan : ServePlan
        What to serve.
    """
    carried = plan.to_dict()
    return build_openai_app(
        {
            "llm_configs": [_llm_config(plan, carried)],
            "ingress_cls_config": {"ingress_cls": SloIngress, "ingress_extra_kwargs": {"plan": carried}},
            "ingress_deployment_config": {
                "num_replicas": plan.routers,
                "ray_actor_options": {"runtime_env": {"env_vars": _environment(plan)}},
            },
        }
    )


def _llm_config(plan: ServePlan, carried: dict[str, Any]) -> LLMConfig:
    deployment: dict[str, Any] = {
        "request_router_config": RequestRouterConfig(
            request_router_class=SloRequestRouter,
            request_router_kwargs={"plan": carried},
            request_routing_stats_period_s=plan.stats_s,
        ),
    }
    if plan.max_replicas > plan.replicas:
        deployment["autoscaling_config"] = _autoscaling(plan)
    else:
        deployment["num_replicas"] = plan.replicas
    found: dict[str, Any] = {
        "model_loading_config": {"model_id": plan.name, "model_source": plan.model},
        "engine_kwargs": {"scheduler_cls": SCHEDULER, **(CPU_ARGUMENTS if plan.cpu else {}), **plan.vllm},
        "runtime_env": {"env_vars": _environment(plan)},
        "deployment_config": deployment,
        "server_cls": SloServer,
        "experimental_configs": {"stream_batching_interval_ms": 0},  # each token as it comes
        "log_engine_metrics": False,
    }
    if Path(plan.model).is_dir():
        found["callback_config"] = {"callback_class": _OnDisk}
    if plan.cpu:
        found["accelerator_config"] = {"kind": "cpu"}
        found["placement_group_config"] = {"bundles": [{"CPU": 1}]}
        deployment["ray_actor_options"] = {"num_cpus": 0}
    elif plan.accelerator is not None:
        found["accelerator_type"] = plan.accelerator
    return LLMConfig(**found)


def _autoscaling(plan: ServePlan) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=plan.replicas,
        max_replicas=plan.max_replicas,
        upscale_delay_s=plan.upscale_s,
        downscale_delay_s=plan.downscale_s,
        look_back_period_s=max(plan.upscale_s, 15.0),
        policy={"policy_function": scale},
    )


def _environment(plan: ServePlan) -> dict[str, str]:
    """Variables of the processes that load vLLM."""
    found = {name: os.environ.get(name, value) for name, value in _QUIET.items()} if plan.cpu else {}
    if plan.cpu:
        found |= CPU_ENVIRONMENT
    if plan.scratch is not None:
        found["TMPDIR"] = plan.scratch
    config = plan.config or os.environ.get(ENVIRONMENT_VARIABLE)
    return {**found, ENVIRONMENT_VARIABLE: config} if config else found
