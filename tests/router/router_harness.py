"""A router in front of stubs, all in one event loop, and policies that do as a test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from stub_replica import StubReplica

from slo_opt.domain.engines import engine_named
from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.serve import RouterPlan, running
from slo_opt.engine_bridge.router.service import Router
from slo_opt.policies.interface import Job, RoundEnd
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.registry import RoutingContext

ENGINE = engine_named("llama-3-8b-h100")
DAY_MS = 86_400_000.0
CLASSES = {
    "slack": LiveClass("slack", ttft_ms=DAY_MS, tpot_ms=DAY_MS),
    "strict": LiveClass("strict", ttft_ms=1e-6, tpot_ms=1e-6),
}
CONFIG = BridgeConfig(classes=CLASSES)
IN_ORDER = "router_harness:InOrder"


class InOrder:
    """The first replica that is offered."""

    name = "in-order"

    def __init__(self, context: RoutingContext) -> None:
        self.ends: list[RoundEnd] = []

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        return Placement(replicas[0].id)

    def observe(self, end: RoundEnd) -> None:
        self.ends.append(end)


class Holding(InOrder):
    """Holds each request back until it has been asked about three times."""

    def __init__(self, context: RoutingContext) -> None:
        super().__init__(context)
        self.asked: dict[str, list[float]] = {}

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        asked = self.asked.setdefault(job.id, [])
        asked.append(now_s)
        return Placement(None, wake_s=now_s + 0.01) if len(asked) < 3 else Placement(replicas[0].id)


class Never(InOrder):
    """Holds back for good."""

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        return Placement(None)


class OnlyBoth(InOrder):
    """Holds back until there are two replicas."""

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        return Placement(replicas[1].id if len(replicas) > 1 else None)


class NoPromise(InOrder):
    """The first replica, without a promise."""

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        return Placement(replicas[0].id, best_effort=True)


class Failing(InOrder):
    """Raises, or chooses what is not there."""

    def route(self, job: Job, replicas: Sequence[ReplicaView], now_s: float) -> Placement:
        if job.id.endswith("1"):
            raise RuntimeError("a defect")
        return Placement("nobody")

    def observe(self, end: RoundEnd) -> None:
        raise RuntimeError("another defect")


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    broken: bool = False

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        assert (self.header("content-type") or "").startswith("application/json")
        return json.loads(self.body)["error"]


@dataclass
class Routed:
    """A router that runs, and a client."""

    router: Router
    url: str
    client: aiohttp.ClientSession

    async def ask(self, path: str = "/v1/completions", body: Any = None, **headers: str) -> Answer:
        """POST a body, by default one that asks for a stream of four tokens."""
        if body is None:
            body = {"prompt": [1, 2, 3], "max_tokens": 4, "stream": True}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.send("POST", path, data, names)

    async def get(self, path: str, **headers: str) -> Answer:
        """GET a path."""
        return await self.send("GET", path, None, {key.replace("_", "-"): value for key, value in headers.items()})

    async def send(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        """One request; a broken answer is told, not raised."""
        sent = self.client.request(method, self.url + path, data=data, headers=headers, allow_redirects=False)
        async with sent as response:
            body = bytearray()
            broken = False
            try:
                async for piece in response.content.iter_any():
                    body += piece
            except aiohttp.ClientError:
                broken = True
            return Answer(response.status, list(response.headers.items()), bytes(body), broken)

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one series; the sum of several."""
        answer = await self.get("/metrics")
        total = 0.0
        for line in answer.body.decode().splitlines():
            key, _, value = line.rpartition(" ")
            if key.partition("{")[0] == name and all(f'{key_}="{text}"' in key for key_, text in labels.items()):
                total += float(value)
        return total


@asynccontextmanager
async def routed(
    stubs: Sequence[StubReplica], policy: str = IN_ORDER, config: BridgeConfig = CONFIG, **options: Any
) -> AsyncIterator[Routed]:
    """Run a router in front of stubs; looks are frequent, and nothing is too late unless `options` say so."""
    usual = {"probe_interval_s": 0.05, "probe_timeout_s": 100.0, "read_timeout_s": 300.0, "connect_timeout_s": 300.0}
    chosen = RouterOptions(**{**usual, **options})
    plan = RouterPlan([stub.url for stub in stubs], ENGINE, policy, {}, config, chosen)
    connector = aiohttp.TCPConnector(limit=0)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
    async with running(plan) as found, session:
        yield Routed(found.router, found.url, session)
        assert not [attempt for replica in found.router.fleet.replicas for attempt in replica.attempts]
        for replica in found.router.fleet.replicas:
            assert len(replica.books) == 0


async def until(condition: Callable[[], bool], timeout_s: float = 200.0) -> None:
    """Wait for something to become true; the limit only ends a test that hangs."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run one test; the limit only ends one that hangs."""

    async def limited() -> Any:
        async with asyncio.timeout(300):
            return await work

    return asyncio.run(limited())


async def raw(url: str, text: bytes, *, until_close: bool = True) -> bytes:
    """Send bytes as they are, and read until the other end closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    try:
        return await reader.read() if until_close else await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
