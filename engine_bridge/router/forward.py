"""One request at one replica: sent, its answer passed on piece by piece."""

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from slo_opt.engine_bridge.router.answers import error_event
from slo_opt.engine_bridge.router.headers import HOP_BY_HOP, Headers, end_to_end
from slo_opt.engine_bridge.router.intake import Call
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.replica import Attempt, Replica
from slo_opt.engine_bridge.router.stream_meter import StreamMeter, WholeMeter, ends_event

BEST_EFFORT_HEADER = "x-slo-best-effort"
_REFUSALS = (429, 503)
_MOST_KEPT_BYTES = 1 << 20  # of an answer that is kept while another replica is asked
_LARGE_BYTES = 1 << 20  # sent in parts, so that others have their turn
_LAST_WORDS_S = 5.0
_NOT_KEPT = HOP_BY_HOP | {"content-length"}

Meter = StreamMeter | WholeMeter


@dataclass(frozen=True, slots=True)
class NotServed:
    """A replica did not serve a request, and no byte of an answer has gone to the client.

    Parameters
    ----------
    reason : str
        One of `slo_opt.engine_bridge.router.metrics.REASONS`.
    status : int
        For the client, if nobody else serves it.
    text : str
        What happened, in a few words.
    headers, body : list of (str, str), bytes or None
        The replica's own answer, where it is one that the client should have.
    """

    reason: str
    status: int
    text: str
    headers: Headers | None = None
    body: bytes | None = None

    @property
    def refused(self) -> bool:
        """Whether the replica is well and sent the request away."""
        return self.reason == "refused"

    @property
    def gone(self) -> bool:
        """Whether the replica is not there, or is no server."""
        return self.reason not in ("refused", "server_error", "timeout")


@dataclass(frozen=True, slots=True)
class Served:
    """An answer that went to the client.

    Parameters
    ----------
    response : web.StreamResponse
        As far as it went.
    complete : bool
        Whether to its end.
    meter : StreamMeter, WholeMeter or None
        The tokens in it; None where its bytes cannot be read.
    """

    response: web.StreamResponse
    complete: bool
    meter: Meter | None = None


class Forward:
    """Sends requests to replicas.

    Parameters
    ----------
    session : aiohttp.ClientSession
        Keeps the connections: see `make_session`.
    options : RouterOptions
        The time limits.
    began : callable
        Told of a call when the first byte of its answer has come.
    """

    def __init__(self, session: aiohttp.ClientSession, options: RouterOptions, began: Callable[[Call], None]) -> None:
        self._session = session
        self._options = options
        self._began = began

    async def send(self, call: Call, replica: Replica, *, best_effort: bool = False) -> Served | NotServed:
        """Let a replica serve a call.

        Parameters
        ----------
        call : Call
            Nothing of an answer to it has been sent.
        replica : Replica
            Where it goes. It is in its books until this returns.
        best_effort : bool
            Tell the engine that no promise holds.

        Raises
        ------
        ConnectionError
            The client is gone.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        end_s = now_s + self._options.total_timeout_s
        clock = asyncio.timeout_at(min(end_s, now_s + self._options.idle_timeout_s))
        attempt = Attempt(clock, now_s)
        replica.books.sent(call.job, now_s)
        replica.attempts.add(attempt)
        try:
            async with clock:
                return await self._exchange(call, replica, attempt, end_s, best_effort)
        except TimeoutError:
            if attempt.lost:
                what = "the replica is cut off"
            elif loop.time() >= end_s:
                what = f"the answer took longer than {self._options.total_timeout_s:g} s"
            else:
                what = f"the replica was silent for {self._options.idle_timeout_s:g} s"
            if call.response is None:
                return NotServed("timeout", 504, what)
            return await _break_off(call, attempt, 504, what)
        finally:
            replica.attempts.discard(attempt)
            replica.books.ended(call.job, loop.time())

    async def _exchange(
        self, call: Call, replica: Replica, attempt: Attempt, end_s: float, best_effort: bool
    ) -> Served | NotServed:
        answer = await self._ask(call, replica, best_effort)
        if isinstance(answer, NotServed):
            return answer
        try:
            if answer.status < 200:
                return NotServed("malformed", 502, f"it answered with status {answer.status}")
            if 300 <= answer.status < 400 and answer.status != 304:
                return NotServed("redirect", 502, f"it answered with a redirection ({answer.status})")
            if answer.status in _REFUSALS or answer.status >= 500:
                return await _kept(answer)
            try:
                first = await answer.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                return NotServed("disconnected", 502, f"its answer broke off: {_words(error)}")
            return await self._pass_on(call, replica, attempt, end_s, answer, first)
        finally:
            if not answer.content.at_eof():
                answer.close()  # the replica stops generating

    async def _ask(self, call: Call, replica: Replica, best_effort: bool) -> aiohttp.ClientResponse | NotServed:
        """Send it, and wait for the head of the answer."""
        headers = CIMultiDict(call.headers)
        if best_effort and BEST_EFFORT_HEADER not in headers and call.generates:
            headers[BEST_EFFORT_HEADER] = "true"
        url = URL(replica.url + call.target, encoded=True)
        for last in (False, True):
            body = io.BytesIO(call.body) if len(call.body) > _LARGE_BYTES else call.body or None
            try:
                return await self._session.request(
                    call.request.method, url, data=body, headers=headers, allow_redirects=False
                )
            except aiohttp.ServerTimeoutError:
                return NotServed("timeout", 504, f"no connection within {self._options.connect_timeout_s:g} s")
            except aiohttp.ClientConnectorError as error:
                return NotServed("unreachable", 503, f"it cannot be reached: {_words(error)}")
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # An idle connection may have ended just before it was used: once more, on another one.
                if last:
                    return NotServed("disconnected", 502, f"the connection was lost: {_words(error)}")
            except aiohttp.ClientError as error:
                return NotServed("malformed", 502, f"it does not answer in HTTP: {_words(error)}")
        raise AssertionError("unreachable")

    async def _pass_on(
        self,
        call: Call,
        replica: Replica,
        attempt: Attempt,
        end_s: float,
        answer: aiohttp.ClientResponse,
        piece: bytes,
    ) -> Served:
        """The answer, from its first byte on. From here on nobody else can be asked."""
        loop, idle_s, books = asyncio.get_running_loop(), self._options.idle_timeout_s, replica.books
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=CIMultiDict(end_to_end(answer.headers.items()))
        )
        meter = _meter_for(call, answer)
        call.response = response
        self._began(call)
        attempt.writing = True
        await response.prepare(call.request)
        while piece:
            attempt.tail = piece[-4:] if len(piece) >= 4 else (attempt.tail + piece)[-4:]
            now_s = attempt.heard_s = loop.time()
            attempt.clock.reschedule(min(end_s, now_s + idle_s))
            attempt.writing = True
            if meter is not None and (tokens := meter.feed(piece)):
                books.passed(call.job, tokens, now_s)
            await response.write(piece)
            attempt.writing = False
            try:
                piece = await answer.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                return await _break_off(call, attempt, 502, f"the replica's answer broke off: {_words(error)}")
        if isinstance(meter, StreamMeter) and not meter.ended and not _framed(answer):
            return await _break_off(call, attempt, 502, "the replica closed the connection before the stream ended")
        attempt.writing = True
        await response.write_eof()
        if isinstance(meter, WholeMeter):
            meter.finish()
        return Served(response, True, meter)


def make_session(options: RouterOptions) -> aiohttp.ClientSession:
    """Connections to replicas: kept while used, no cookies, no proxies, no header of its own making."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)  # vLLM's server closes them after 5 s
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_timeout_s),
    )


async def _kept(answer: aiohttp.ClientResponse) -> NotServed:
    """An answer that is only used if nobody else gives a better one."""
    reason = "refused" if answer.status in _REFUSALS else "server_error"
    headers = end_to_end(answer.headers.items(), _NOT_KEPT)
    try:
        body = await answer.content.read(_MOST_KEPT_BYTES + 1)
        while len(body) <= _MOST_KEPT_BYTES and (more := await answer.content.readany()):
            body += more
    except (aiohttp.ClientError, OSError) as error:
        return NotServed("disconnected", 502, f"its answer {answer.status} broke off: {_words(error)}")
    if len(body) > _MOST_KEPT_BYTES:
        return NotServed(reason, answer.status, f"it answered {answer.status}, at great length")
    return NotServed(reason, answer.status, f"it answered {answer.status}", headers, body)


async def _break_off(call: Call, attempt: Attempt, status: int, what: str) -> Served:
    """End an answer that cannot go on so that its client sees it: by an event if one can follow, else by a reset."""
    response = cast(web.StreamResponse, call.response)
    if not attempt.writing and response.content_type == "text/event-stream" and ends_event(attempt.tail):
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await response.write(error_event(status, f"{what}; send the request again"))
                await response.write_eof()
            return Served(response, False)
        except (ConnectionError, TimeoutError):
            pass
    transport = call.request.transport
    if transport is not None:
        transport.abort()
    return Served(response, False)


def _meter_for(call: Call, answer: aiohttp.ClientResponse) -> Meter | None:
    encoding = answer.headers.get("Content-Encoding", "identity")
    if not call.generates or encoding.lower() != "identity" or answer.status != 200:
        return None
    return StreamMeter() if answer.content_type == "text/event-stream" else WholeMeter()


def _framed(answer: aiohttp.ClientResponse) -> bool:
    """Whether the end of the answer can be told from a lost connection."""
    return "Content-Length" in answer.headers or "chunked" in answer.headers.get("Transfer-Encoding", "").lower()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
