"""ASGI middleware for vLLM's server: ``--middleware slo_opt.engine_bridge.middleware.SloMiddleware``.

It writes SLO headers into the request body, answers malformed SLO fields with 400 before anything reaches the engine,
and turns a refusal by the scheduler into 429 with Retry-After. See docs/slo-fields.md.
"""

import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from slo_opt.engine_bridge.config import BridgeConfig, config_from_environment
from slo_opt.engine_bridge.refusal import Outcome, current_outcome, retry_after_of, watch
from slo_opt.engine_bridge.slo_body import header_fields, place_of, read_body
from slo_opt.engine_bridge.slo_fields import RequestSlo, SloFieldError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

MAX_BODY_BYTES = 32 << 20  # a longer one passes unread: the scheduler checks its fields again
_log = logging.getLogger("slo_opt")


class SloMiddleware:
    """SLO intake in front of an OpenAI-compatible server of vLLM.

    Parameters
    ----------
    app : ASGI application
        What it stands before.
    config : BridgeConfig, optional
        That of ``$SLO_OPT_CONFIG`` if not given.
    max_body_bytes : int
        Bodies up to this size are looked at.

    Raises
    ------
    ConfigError
        See `load_config`.
    """

    def __init__(self, app: App, config: BridgeConfig | None = None, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._config = config_from_environment() if config is None else config
        self._max_body_bytes = max_body_bytes
        self._warned = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection; everything but a POST to a generation endpoint passes."""
        place = place_of(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if place is None:
            await self._app(scope, receive, send)
            return
        arrived, length = await _arrived(receive, self._max_body_bytes)
        again = _again(arrived, receive)
        try:
            headers = header_fields(scope["headers"])
            if length > self._max_body_bytes or arrived[-1]["type"] != "http.request":
                if headers and length > self._max_body_bytes:
                    await _answer(send, 413, _too_long(headers, self._max_body_bytes))
                else:
                    await self._app(scope, again, send)
                return
            read = read_body(b"".join(message.get("body", b"") for message in arrived), place, headers, self._config)
        except SloFieldError as error:
            await _answer(send, 400, _error(str(error), "BadRequestError", 400, error.field))
            return
        if read.body is not None:
            scope = {**scope, "headers": _of_length(scope["headers"], len(read.body))}
            again = _again([{"type": "http.request", "body": read.body, "more_body": False}], receive)
        if self._may_be_refused(scope, read.slo):
            await self._watched(scope, again, send)
        else:
            await self._app(scope, again, send)

    def _may_be_refused(self, scope: MutableMapping[str, Any], slo: RequestSlo | None) -> bool:
        if self._config.on_unattainable != "refuse" or slo is None or slo.best_effort:
            return False
        if watch(getattr(getattr(scope.get("app"), "state", None), "engine_client", None)):
            return True
        if not self._warned:
            self._warned = True
            _log.warning(
                "slo-opt: this server has no engine client that can be watched: refused requests will end without "
                "tokens (finish_reason 'abort'), not with 429"
            )
        return False

    async def _watched(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        outcome = Outcome()
        token = current_outcome.set(outcome)
        try:
            await self._app(scope, receive, _HeldResponse(send, outcome, self._config.retry_after_s).send)
        finally:
            current_outcome.reset(token)


class _HeldResponse:
    """A response that is held back until it is clear that its request was not refused."""

    def __init__(self, send: Send, outcome: Outcome, retry_after_s: int) -> None:
        self._send = send
        self._outcome = outcome
        self._retry_after_s = retry_after_s
        self._held: list[Message] = []
        self._passing = False
        self._answered = False

    async def send(self, message: Message) -> None:
        """Hold, pass on, or answer in its place."""
        if self._passing:
            await self._send(message)
        elif not self._answered:
            self._held.append(message)
            if self._passes(message):
                self._passing = True
                for held in self._held:
                    await self._send(held)
                self._held.clear()
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                self._answered = True
                await self._refuse()

    def _passes(self, message: Message) -> bool:
        """Whether nothing more has to be waited for."""
        if message["type"] == "http.response.start":
            return bool(message["status"] != 200)
        if message["type"] != "http.response.body" or self._outcome.begun:
            return True
        # A keep-alive comment is for whoever waits: from then on the status is settled.
        if message.get("body", b"").startswith(b":"):
            return True
        return self._outcome.refusal is None and not message.get("more_body", False)

    async def _refuse(self) -> None:
        assert self._outcome.refusal is not None
        wait_s = retry_after_of(self._outcome.refusal, self._retry_after_s)
        kept = [
            (name, value)
            for name, value in self._held[0].get("headers", ())
            if name.lower() not in (b"content-type", b"content-length", b"transfer-encoding")
        ]
        kept.append((b"retry-after", str(wait_s).encode()))
        await _answer(self._send, 429, _error(self._outcome.refusal, "RateLimitError", 429, None), kept)


async def _arrived(receive: Receive, most_bytes: int) -> tuple[list[Message], int]:
    """Messages of a request up to the end of its body, a disconnect, or more than so many bytes; and the bytes."""
    arrived: list[Message] = []
    length = 0
    while True:
        message = await receive()
        arrived.append(message)
        length += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False) or length > most_bytes:
            return arrived, length


def _again(arrived: list[Message], receive: Receive) -> Receive:
    """Hand out what arrived once more, then what follows."""
    left = deque(arrived)

    async def next_message() -> Message:
        return left.popleft() if left else await receive()

    return next_message


def _of_length(headers: Headers, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


def _too_long(headers: dict[str, str], most_bytes: int) -> bytes:
    field = next(iter(headers))
    problem = f"{field} is given by a header, and the body has more than {most_bytes} bytes; give it in the body"
    return _error(problem, "BadRequestError", 413, field)


def _error(message: str, kind: str, status: int, field: str | None) -> bytes:
    """An error as OpenAI's clients read it, with vLLM's types and codes."""
    return json.dumps({"error": {"message": message, "type": kind, "param": field, "code": status}}).encode()


async def _answer(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    about_body = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *about_body]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
