"""The router: takes requests, finds each a replica that serves it, and answers what nobody does."""

import asyncio
import json
import logging
import math

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.router.answers import AnsweredError
from slo_opt.engine_bridge.router.connection import TimedConnection
from slo_opt.engine_bridge.router.fleet import Fleet
from slo_opt.engine_bridge.router.forward import Forward, NotServed, Served
from slo_opt.engine_bridge.router.intake import Call, Intake
from slo_opt.engine_bridge.router.metrics import RouterMetrics
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.replica import Replica
from slo_opt.engine_bridge.router.stream_meter import StreamMeter
from slo_opt.policies.interface import RoundEnd, Standing

_METHODS = ("GET", "POST")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger("slo_opt")


class Router:
    """An OpenAI-compatible server in front of others.

    It keeps nothing that a restart would lose but what it has learned of lengths.

    Parameters
    ----------
    fleet : Fleet
        The replicas, and who chooses.
    session : aiohttp.ClientSession
        See `slo_opt.engine_bridge.router.forward.make_session`.
    config : BridgeConfig
        Names the SLO classes.
    engine : EngineModel
        Says what a TTFT slowdown comes to.
    options : RouterOptions
        The limits.
    metrics : RouterMetrics
        Shown at ``/metrics``.
    """

    def __init__(
        self,
        fleet: Fleet,
        session: aiohttp.ClientSession,
        config: BridgeConfig,
        engine: EngineModel,
        options: RouterOptions,
        metrics: RouterMetrics,
    ) -> None:
        self.fleet = fleet
        self.in_flight = 0
        self.draining = False
        self._options = options
        self._metrics = metrics
        self._intake = Intake(config, engine, options)
        self._forward = Forward(session, options, self._began)
        self._idle = asyncio.Event()
        self._idle.set()
        self._own = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._show_metrics,
            "/v1/models": self._models,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; nothing escapes but the loss of the client."""
        connection = request.protocol
        assert isinstance(connection, TimedConnection)
        connection.begin()
        try:
            return await self._handle(request)
        except AnsweredError as error:
            if 400 <= error.status < 500:
                self._metrics.answered("", "invalid")
            return error.response()
        except ConnectionError:
            raise
        except Exception:
            _log.exception("slo-opt: a request failed in the router")
            return AnsweredError(500, "the router failed; see its log", close=True).response()
        finally:
            connection.end()

    async def drain(self, limit_s: float) -> int:
        """Take no further request, and wait until those under way have ended; returns how many have not."""
        self.draining = True
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self.in_flight

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in _METHODS:
            raise AnsweredError(405, f"{request.method[:20]} is no method of the API; use GET or POST", close=True)
        own = self._own.get(request.rel_url.raw_path) if request.method == "GET" else None
        if own is not None and (answer := own()) is not None:
            return answer
        if self.draining:
            self._metrics.answered("", "unavailable")
            raise AnsweredError(503, "the router is shutting down; ask another one", retry_after_s=1, close=True)
        if self.in_flight >= self._options.max_concurrency:
            self._metrics.answered("", "unavailable")
            raise AnsweredError(
                503,
                f"{self.in_flight} requests are under way, which is the limit; ask later",
                retry_after_s=1,
                close=True,
            )
        self.in_flight += 1
        self._idle.clear()
        try:
            call = await self._intake.read(request)
            return await self._serve(call)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def _serve(self, call: Call) -> web.StreamResponse:
        """Ask one replica after the other until one serves it."""
        try:
            found = await self._find(call)
        except (asyncio.CancelledError, ConnectionError):
            self._count(call, "left", False)
            raise
        if isinstance(found, Served):
            self._ended(call, found)
            return found.response
        refused = isinstance(found, NotServed) and found.refused
        self._count(call, "refused" if refused else "unavailable", False)
        if isinstance(found, AnsweredError):
            raise found
        if found.body is None:
            raise AnsweredError(
                found.status,
                f"no replica could serve the request, of the last one: {found.text}; send it again",
                retry_after_s=self._retry_s(),
            )
        headers = CIMultiDict(found.headers or ())
        if refused:
            headers.setdefault("Retry-After", str(self._retry_s()))
        return web.Response(status=found.status, headers=headers, body=found.body)

    async def _find(self, call: Call) -> Served | NotServed | AnsweredError:
        tried: set[str] = set()
        last: NotServed | None = None
        failures = 0
        while True:
            placed = await self.fleet.place(call.job, call.shape, tried)
            if placed is None:
                return last or self._nobody()
            if placed.replica is None:
                return last or AnsweredError(
                    503,
                    f"no replica could take the request within {self._options.max_hold_s:g} s; send it later",
                    retry_after_s=self._retry_s(),
                )
            if last is None:
                self._metrics.sent(asyncio.get_running_loop().time() - call.ready_s - placed.held_s)
            else:
                self._metrics.hopped(last.reason)
            if placed.best_effort:
                call.job.standing = Standing.BEST_EFFORT
            result = await self._forward.send(call, placed.replica, best_effort=placed.best_effort)
            if isinstance(result, Served):
                if result.complete:
                    placed.replica.health.served()
                else:
                    placed.replica.health.doubted(asyncio.get_running_loop().time())
                    placed.replica.look_now.set()
                return result
            last = result
            tried.add(placed.replica.id)
            self._not_served(placed.replica, result)
            failures += not result.refused
            if failures >= self._options.max_failures:
                return last

    def _not_served(self, replica: Replica, result: NotServed) -> None:
        self._metrics.failed(replica.id, result.reason)
        if result.refused:
            return
        now_s = asyncio.get_running_loop().time()
        if result.gone:
            went_down = replica.health.failed(now_s, result.text)
        elif result.reason == "timeout":  # a busy replica is late as well: looks and further requests decide
            went_down = replica.health.up and replica.health.missed(now_s, now_s, result.text, sure=False)
        else:
            went_down = False
            replica.health.doubted(now_s)
        if went_down:
            _log.warning("slo-opt: %s is down: %s", replica.url, result.text)
        replica.look_now.set()

    def _began(self, call: Call) -> None:
        self._metrics.began(call.job.round_slo, asyncio.get_running_loop().time() - call.job.release_s)

    def _ended(self, call: Call, served: Served) -> None:
        """Score what passed, and let the policy learn from it."""
        job, meter = call.job, served.meter
        self._metrics.answered(job.round_slo, "finished" if served.complete else "broken")
        if meter is None:
            if not served.complete or served.response.status >= 400:
                self._score(call, False)
            return
        tokens = max(meter.tokens, job.delivered)
        if isinstance(meter, StreamMeter):
            fine = served.complete and job.delivered > 0 and not meter.failed and not job.missed
        else:  # only its end is seen: its last token has to be in time
            late_s = asyncio.get_running_loop().time() - job.due_at(max(1, tokens))
            job.missed |= late_s > TIME_TOLERANCE_S and not job.promise.best_effort
            fine = served.complete and not job.missed
        self._score(call, fine)
        if meter.prompt_tokens:
            self._intake.measure.observe(call.shape, meter.prompt_tokens)
        if served.complete and tokens:
            self.fleet.observe(RoundEnd(job.id, job.round_slo, tokens, job.missed))

    def _count(self, call: Call, answer: str, attained: bool) -> None:
        self._metrics.answered(call.job.round_slo, answer)
        self._score(call, attained)

    def _score(self, call: Call, attained: bool) -> None:
        if not call.job.promise.best_effort:
            self._metrics.scored(call.job.round_slo, attained)

    def _nobody(self) -> AnsweredError:
        down = "; ".join(f"{replica.url}: {replica.health.cause}" for replica in self.fleet.replicas)
        _log.debug("slo-opt: no replica is up: %s", down)
        return AnsweredError(503, "no replica is up; send the request again", retry_after_s=self._retry_s())

    def _retry_s(self) -> int:
        """Whole seconds until a replica that is down is looked at next, at least 1."""
        now_s = asyncio.get_running_loop().time()
        waits = [replica.health.next_look_s - now_s for replica in self.fleet.replicas if not replica.health.up]
        return max(1, math.ceil(min(waits, default=1.0)))

    def _health(self) -> web.StreamResponse:
        return web.Response()

    def _ready(self) -> web.StreamResponse:
        if self.draining:
            raise AnsweredError(503, "the router is shutting down", retry_after_s=1)
        if not self.fleet.up:
            raise self._nobody()
        return web.Response()

    def _show_metrics(self) -> web.StreamResponse:
        if not self._metrics.available:
            raise AnsweredError(404, "there are no metrics without prometheus_client; pip install prometheus-client")
        replicas = self.fleet.replicas
        self._metrics.state(
            ((replica.id, len(replica.attempts), replica.health.up) for replica in replicas), self.fleet.num_held
        )
        return web.Response(body=self._metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    def _models(self) -> web.StreamResponse | None:
        """Models of all replicas; None where none is known, and one of them is asked on behalf of the client."""
        rows = {row["id"]: row for replica in reversed(self.fleet.up) for row in reversed(replica.models)}
        if not rows:
            return None
        body = json.dumps({"object": "list", "data": list(reversed(rows.values()))}).encode()
        return web.Response(body=body, headers={"Content-Type": "application/json"})
