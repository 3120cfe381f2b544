"""An ASGI server and application in miniature: one request through a middleware, every message on record."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

DISCONNECT = {"type": "http.disconnect"}


@dataclass
class Exchange:
    """What went into the application and what came out to the client.

    Attributes
    ----------
    scope : dict or None
        As the application saw it; None if it was never called.
    received : list of dict
        Messages that the application read.
    sent : list of dict
        Messages that the client got.
    """

    scope: dict[str, Any] | None = None
    received: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    @property
    def body_in(self) -> bytes:
        """The body that the application read."""
        return b"".join(message.get("body", b"") for message in self.received)

    @property
    def status(self) -> int:
        """Status that the client got; checks that the messages are legal."""
        assert [message["type"] for message in self.sent] == (
            ["http.response.start"] + ["http.response.body"] * (len(self.sent) - 1)
        )
        assert [message.get("more_body", False) for message in self.sent[1:]] == [True] * (len(self.sent) - 2) + [False]
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the client got, each once."""
        found = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        assert len(found) == len(self.sent[0]["headers"])
        return found

    @property
    def body(self) -> bytes:
        """The body that the client got."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def error(self) -> dict[str, Any]:
        """The error object that the client got."""
        assert self.headers["content-type"] == "application/json"
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)["error"]


Reply = Callable[[Exchange], AsyncIterator[dict[str, Any]]]


def as_parts(body: bytes, cuts: Sequence[int] = ()) -> list[dict[str, Any]]:
    """A body in several messages, cut at these places."""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    parts = [body[start:end] for start, end in pairwise(edges)]
    return [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]


async def ok(exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """Answer 200 and ``{}``."""
    yield {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    yield {"type": "http.response.body", "body": b"{}"}


def post_scope(path: str, body: Iterable[dict[str, Any]], headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The scope of a POST."""
    length = sum(len(message.get("body", b"")) for message in body)
    lines = [("host", "a"), ("content-type", "application/json"), ("content-length", str(length)), *headers]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]
    return {"type": "http", "method": "POST", "path": path, "headers": encoded}


async def through(
    wrap: Callable[[Any], Any],
    messages: Sequence[dict[str, Any]],
    *,
    path: str = "/v1/completions",
    headers: Iterable[tuple[str, str]] = (),
    reply: Reply = ok,
    engine_client: Any = None,
    scope: dict[str, Any] | None = None,
) -> Exchange:
    """Send one request through the middleware that `wrap` puts around an application, and record it all."""
    exchange = Exchange()
    left = list(messages)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        exchange.scope = scope
        while scope["type"] == "http":
            message = await receive()
            exchange.received.append(message)
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body", False):
                break
        async for message in reply(exchange):
            await send(message)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return left.pop(0) if left else DISCONNECT

    async def send(message: dict[str, Any]) -> None:
        exchange.sent.append(message)

    scope = scope or post_scope(path, messages, headers)
    scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=engine_client))
    await wrap(application)(scope, receive, send)
    return exchange
