"""An engine's server without an engine: streams tokens as vLLM does, and goes wrong on demand."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

CUT = -1  # as a chunk: the connection is reset here


@dataclass
class StubCall:
    """A call that came."""

    number: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    ended: str = "running"  # then "answered" or "left"

    def header(self, name: str) -> str | None:
        """The only header of that name, or None."""
        found = [value for key, value in self.headers if key.lower() == name]
        assert len(found) < 2
        return found[0] if found else None

    @property
    def document(self) -> dict[str, Any]:
        """Its body."""
        return json.loads(self.body)


Behaviour = Callable[[StubCall], str | None]


@dataclass
class StubReplica:
    """Serves on a free loopback port, which it keeps when it is killed and started again.

    Parameters
    ----------
    behave : callable
        What goes wrong with a call, None for nothing: see `_answer`.
    step_s : float
        Before each token.
    name : str
        Of its model.
    metrics : str
        Its /metrics.
    health : int
        Status of /health; 0 gives no answer.

    Attributes
    ----------
    calls : list of StubCall
        Everything but looks.
    chunks : dict of str to list of bytes
        Raw pieces of the answer to a call with ``x-script: NAME``.
    gate : asyncio.Event or None
        Tokens after the first wait for it.
    """

    behave: Behaviour = lambda call: None
    step_s: float = 0.0
    name: str = "stub"
    metrics: str = ""
    health: int = 200
    calls: list[StubCall] = field(default_factory=list)
    chunks: dict[str, list[bytes]] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    port: int = 0
    open: int = 0
    most_open: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "StubReplica":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listen, at the port of before."""
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", self._call)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._up = True

    async def kill(self) -> None:
        """Go as a killed process does: nothing listens, every connection is reset."""
        if not self._up:
            return
        self._up = False
        self._stop.set()
        for site in list(self._runner.sites):
            await site.stop()
        server = self._runner.server
        assert server is not None
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if not self.health:
            await self._stop.wait()
        return web.Response(status=self.health or 500)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=self.metrics)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        row = {"id": self.name, "object": "model", "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [row]})

    async def _call(self, request: web.Request) -> web.StreamResponse:
        call = StubCall(len(self.calls), request.method, request.raw_path, list(request.headers.items()), b"")
        self.calls.append(call)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            call.body = await request.read()
            answer = await self._answer(request, call, self.behave(call))
            call.ended = "answered"
            return answer
        finally:
            self.open -= 1
            if call.ended != "answered":
                call.ended = "left"

    async def _answer(self, request: web.Request, call: StubCall, wrong: str | None) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if wrong in ("429", "503"):
            headers = {"Retry-After": "7", "Connection": "x-hop", "x-hop": "1", "x-kept": "2"}
            return web.json_response({"error": {"message": "not now"}}, status=int(wrong), headers=headers)
        if wrong == "500":
            return web.json_response({"error": {"message": "engine dead"}}, status=500)
        if wrong == "die":
            transport.abort()
            return web.Response()
        if wrong == "hang":
            await self._stop.wait()
            transport.abort()
            return web.Response()
        if wrong == "garbage":
            transport.write(b"this is no HTTP\r\n\r\n")
            transport.close()
            return web.Response()
        if wrong == "redirect":
            raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/elsewhere")
        if wrong == "other-schema":
            return web.json_response({"answer": 42})
        if wrong == "unframed":
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            transport.write(event(0) + event(1))
            transport.close()
            return web.Response()
        script = self.chunks.get(request.headers.get("x-script", ""))
        if script is not None:
            return await self._raw(request, script)
        if request.method == "GET" or not call.body or not call.document.get("stream"):
            return self._whole(call)
        return await self._stream(request, call, wrong)

    def _whole(self, call: StubCall) -> web.StreamResponse:
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Number", str(call.number))]
        return web.Response(
            body=json.dumps({"choices": [{"index": 0, "text": "all"}], "usage": usage}).encode(),
            headers=headers,
            content_type="application/json",
        )

    async def _raw(self, request: web.Request, script: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in script:
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    async def _stream(self, request: web.Request, call: StubCall, wrong: str | None) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if wrong == "die-after-head":
            await asyncio.sleep(0.02)
            transport.abort()
            return response
        wanted = call.document["max_tokens"]
        for token in range(wanted):
            if token and self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.step_s * (5 if wrong == "slow" else 1))
            await response.write(event(token))
            if wrong == "hang-amid" and token == 1:
                await self._stop.wait()
            if wrong in ("die-amid", "die-torn") and token == 1:
                if wrong == "die-torn":
                    await response.write(b'data: {"choi')
                await asyncio.sleep(0.02)
                transport.abort()
                return response
        usage = {"prompt_tokens": 5, "completion_tokens": wanted}
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def event(token: int) -> bytes:
    """One token of a stream."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': f' t{token}'}]})}\n\n".encode()


def tokens_of(text: bytes) -> list[str]:
    """The tokens in a stream, in their order."""
    found = []
    for line in text.split(b"\n"):
        if line.startswith(b"data: {"):
            with contextlib.suppress(ValueError):  # a line that was cut off
                document = json.loads(line[6:])
                found += [choice["text"].strip() for choice in document.get("choices", ())]
    return found
