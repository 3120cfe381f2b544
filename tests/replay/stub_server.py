"""A completions server without a model, which streams as vLLM does and misbehaves on demand."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Behaviour = Callable[["Call"], str | None]
FIRST_TOKEN = 500  # ids of the tokens that it "says"


@dataclass
class Call:
    """One call of the completions API."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class StubServer:
    """Runs in a thread of its own, on a port of its own, for the time of a ``with``.

    Parameters
    ----------
    behave : callable, optional
        Names what goes wrong with a call, None for nothing: see `_answer`.
    models : object
        Answer to ``/v1/models``: names, an HTTP status, or text that is no JSON.
    step_s : float
        Before each event.
    burst : int
        Tokens an event.
    tells : str
        What it tells of them, if asked: ``token-ids``, ``usage`` or nothing.

    Attributes
    ----------
    calls : list of Call
        Those that came, in their order.
    most_at_once : int
        The most under way at one moment.
    """

    behave: Behaviour = lambda call: None
    models: Any = ("stub",)
    step_s: float = 0.0
    burst: int = 1
    tells: str = "token-ids"
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0
    _open: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "StubServer":
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.shut()

    def shut(self) -> None:
        """End it, with all its connections; again does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if isinstance(self.models, int):
            return web.json_response({"error": {"message": "not here"}}, status=self.models)
        if isinstance(self.models, str):
            return web.Response(text=self.models)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        call = Call(len(self.calls), await request.json(), dict(request.headers))
        self.calls.append(call)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            return await self._answer(request, call, self.behave(call))
        finally:
            self._open -= 1

    async def _answer(self, request: web.Request, call: Call, wrong: str | None) -> web.StreamResponse:
        if wrong == "429":
            error = {"error": {"message": "cannot be attained", "code": 429}}
            return web.json_response(error, status=429, headers={"Retry-After": "3"})
        if wrong in ("503", "503-later"):
            headers = {"Retry-After": "1"} if wrong == "503-later" else {}
            return web.Response(text="busy", status=503, headers=headers)
        if wrong == "400":
            return web.json_response({"error": {"message": "vllm_xargs: slo_class is 'x'"}}, status=400)
        if wrong == "whole":
            return web.json_response({"choices": [{"text": "all at once"}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if wrong == "silent":
            await self._stop.wait()
        elif wrong == "pings":
            while not self._stop.is_set():
                await response.write(b": ping\n\n")
                await asyncio.sleep(0.02)
        elif wrong == "abort":
            await response.write(b"data: [DONE]\n\n")
        elif wrong == "not-json":
            await response.write(b"data: {not json\n\n")
        else:
            await self._stream(response, call, wrong)
        if wrong == "disconnect":
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write_eof()
        return response

    async def _stream(self, response: web.StreamResponse, call: Call, wrong: str | None) -> None:
        body = call.body
        wanted = body["max_tokens"] + {"long": 1, "short": -1}.get(wrong or "", 0)
        said = 0
        while said < wanted:
            await asyncio.sleep(self.step_s)
            count = min(self.burst, wanted - said)
            choice: dict[str, Any] = {"index": 0, "text": "é" * count, "finish_reason": None}
            if self.tells == "token-ids" and body.get("return_token_ids"):
                choice["token_ids"] = [FIRST_TOKEN + said + k for k in range(count)]
            said += count
            if said == wanted:
                choice["finish_reason"] = "length"
            chunk: dict[str, Any] = {"object": "text_completion", "choices": [choice]}
            if body["stream_options"].get("continuous_usage_stats") and self.tells == "usage":
                chunk["usage"] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": said}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if wrong == "disconnect":
                return
            if wrong == "error":
                await response.write(b'data: {"error": {"message": "engine died", "code": 500}}\n\n')
                return
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": said,
            "prompt_tokens_details": {"cached_tokens": 7},
        }
        await response.write(f": done\n\ndata: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
