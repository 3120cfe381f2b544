"""From a request on the wire to a request that can be routed."""

import asyncio
from dataclasses import dataclass
from itertools import count
from urllib.parse import unquote

from aiohttp import web

from slo_opt.domain.engine import EngineModel
from slo_opt.engine_bridge.config import BEST_EFFORT_TPOT_MS, BEST_EFFORT_TTFT_MS, BridgeConfig
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.router.answers import AnsweredError
from slo_opt.engine_bridge.router.headers import OF_A_REQUEST, Headers, end_to_end
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.shape import Shape, TextMeasure, shape_of
from slo_opt.engine_bridge.slo_body import header_fields, place_of, read_body
from slo_opt.engine_bridge.slo_fields import RequestSlo, SloFieldError, request_slo

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way.

    Parameters
    ----------
    request : web.BaseRequest
        Of the client.
    target : str
        Path and query, as they came.
    headers : list of (str, str)
        Those that go on.
    body : bytes
        As it came.
    job : LiveJob
        For policies.
    shape : Shape
        Its model and size.
    generates : bool
        Whether its answer is tokens.
    ready_s : float
        When its last byte had come.
    response : web.StreamResponse or None
        What has been begun to answer.
    """

    request: web.BaseRequest
    target: str
    headers: Headers
    body: bytes
    job: LiveJob
    shape: Shape
    generates: bool
    ready_s: float
    response: web.StreamResponse | None = None


class Intake:
    """Reads requests, within limits.

    Parameters
    ----------
    config : BridgeConfig
        Names the SLO classes.
    engine : EngineModel
        Says what a TTFT slowdown comes to.
    options : RouterOptions
        The limits.
    """

    def __init__(self, config: BridgeConfig, engine: EngineModel, options: RouterOptions) -> None:
        self.measure = TextMeasure()
        self._config = config
        self._engine = engine
        self._options = options
        self._numbers = count()
        # What generates nothing has no SLO: it is ordered as best effort.
        self._plain = RequestSlo(
            config.default_class, BEST_EFFORT_TPOT_MS / 1e3, ttft_s=BEST_EFFORT_TTFT_MS / 1e3, best_effort=True
        )

    async def read(self, request: web.BaseRequest) -> Call:
        """Everything that routing needs of a request.

        Raises
        ------
        AnsweredError
            It is not one for a replica, too long, too slow, or its SLO fields mean nothing.
        """
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        target = request.rel_url.raw_path_qs
        check_target(target)
        headers = end_to_end(request.headers.items(), OF_A_REQUEST)
        place = place_of(request.path) if request.method == "POST" else None
        try:
            encoded = _as_bytes(headers)
            fields = {} if place is None else header_fields(encoded)
            body = await self._body(request)
            slo = self._plain if place is None else read_body(body, place, fields, self._config).slo
        except SloFieldError as error:
            raise AnsweredError(400, str(error), field=error.field) from None
        if slo is None:  # nothing that SLO fields can be read from: the replica says what is wrong with it
            slo = request_slo(None, self._config)
        shape = shape_of(body) if body else Shape()
        tokens = self.measure.tokens(shape)
        job = LiveJob(f"r{next(self._numbers)}", slo, arrived_s, slo.ttft_limit_s(self._engine, tokens), tokens)
        return Call(request, target, headers, body, job, shape, place is not None, loop.time())

    async def _body(self, request: web.BaseRequest) -> bytes:
        most = self._options.max_body_bytes
        if (request.content_length or 0) > most:
            raise _too_long(most)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0  # nothing of the answer has been sent
        if request.content.is_eof():  # all of it has come: the router's own delays are not the client's
            whole = await request.content.read()
            if len(whole) > most:
                raise _too_long(most)
            return whole
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._options.read_timeout_s):
                async for piece in request.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        raise _too_long(most)
        except TimeoutError:
            raise AnsweredError(
                408, f"the body did not come within {self._options.read_timeout_s:g} s; send it at once", close=True
            ) from None
        except web.RequestPayloadError as error:
            raise AnsweredError(400, f"the body cannot be read: {error}; mend its framing", close=True) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_target(target: str) -> None:
    """Refuse what is no path of the API: what lies beside ``/v1/`` at a replica is not for clients.

    Raises
    ------
    AnsweredError
        404.
    """
    path = unquote(target.partition("?")[0])
    segments = path.split("/")[2:]
    plain = target.isascii() and path.startswith("/v1/") and path.isprintable() and "\\" not in path
    if not plain or any(segment in ("", ".", "..") for segment in segments):
        raise AnsweredError(404, f"there is nothing at {path[:100]!r}; the API is at /v1/...")


def _as_bytes(headers: Headers) -> list[tuple[bytes, bytes]]:
    try:
        return [(name.encode(), value.encode()) for name, value in headers]
    except UnicodeEncodeError:
        raise AnsweredError(400, "a header holds bytes that are no UTF-8; send plain text") from None


def _too_long(most_bytes: int) -> AnsweredError:
    return AnsweredError(413, f"the body has more than {most_bytes} bytes; send a shorter one", close=True)
