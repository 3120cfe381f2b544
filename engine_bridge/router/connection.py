"""The server's side of a connection: a head that does not come in time ends it."""

import asyncio
from typing import Any

from aiohttp import web

from slo_opt.engine_bridge.router.answers import error_body

_LATE = error_body(408, "the head of the request did not come in time; send it at once")
_LATE_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_LATE), _LATE)
)
_LAG_S = 0.1


class TimedConnection(web.RequestHandler):
    """A connection whose every request head has to come within a time limit.

    It runs from the making of the connection, later from the first byte of a further head. Without a byte the
    connection is closed, with some of them it is answered 408.

    Parameters
    ----------
    manager : web.Server
        Its server.
    head_timeout_s : float
        The limit.
    """

    __slots__ = ("_begun", "_due_s", "_excused", "_head_timeout_s", "_serving", "_timer")

    def __init__(self, manager: web.Server, *, head_timeout_s: float, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._head_timeout_s = head_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._serving = self._begun = self._excused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Start the time with the first byte of a further head."""
        if not self._serving:
            self._begun = True
            if self._timer is None:
                self._start()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the time."""
        self._stop()
        super().connection_lost(exc)

    def begin(self) -> None:
        """A head has come; its request is being served."""
        self._stop()
        self._serving = True

    def end(self) -> None:
        """The request has been served."""
        self._serving = self._begun = self._excused = False

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + self._head_timeout_s
        self._timer = loop.call_at(self._due_s, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._excused and asyncio.get_running_loop().time() - self._due_s > _LAG_S:
            self._excused = True  # it is the router that is late: what has come may not have been read
            self._start()
            return
        if self.transport is not None and self._begun:
            self.transport.write(_LATE_ANSWER)
        self.force_close()


class TimedServer(web.Server):
    """Makes such connections.

    Parameters
    ----------
    handler : callable
        Serves a request.
    head_timeout_s, keep_alive_s : float
        For a head; for an idle connection.
    """

    def __init__(self, handler: Any, *, head_timeout_s: float, keep_alive_s: float) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._head_timeout_s = head_timeout_s
        self._keep_alive_s = keep_alive_s

    def __call__(self) -> TimedConnection:
        """A connection."""
        return TimedConnection(
            self,
            head_timeout_s=self._head_timeout_s,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._keep_alive_s,
            access_log=None,
            auto_decompress=False,  # bodies pass as they are
            lingering_time=1.0,
        )
