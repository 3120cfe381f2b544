"""Looks at every replica again and again: whether it is there, how its engine stands, what it offers."""

import asyncio
import json
import logging
from typing import Any

import aiohttp

from slo_opt.engine_bridge.router.fleet import Fleet
from slo_opt.engine_bridge.router.options import RouterOptions
from slo_opt.engine_bridge.router.replica import Replica
from slo_opt.engine_bridge.router.reports import read_report

_MOST_BYTES = 8 << 20
_MODELS_EVERY = 30  # looks
_log = logging.getLogger("slo_opt")


class Watch:
    """Keeps health and books of all replicas up to date.

    Parameters
    ----------
    fleet : Fleet
        The replicas.
    session : aiohttp.ClientSession
        Keeps connections of its own: looks do not wait behind requests.
    options : RouterOptions
        How often, and for how long.
    """

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, options: RouterOptions) -> None:
        self._fleet = fleet
        self._session = session
        self._patience_s = options.probe_timeout_s
        self._timeout = aiohttp.ClientTimeout(total=options.probe_timeout_s)

    async def first_look(self) -> None:
        """Look at each replica once, and warn of those that do not answer."""
        await asyncio.gather(*(self.look(replica) for replica in self._fleet.replicas))
        for replica in self._fleet.replicas:
            if not replica.health.up:
                _log.warning("slo-opt: %s is left out until it answers: %s", replica.url, replica.health.cause)

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            for replica in self._fleet.replicas:
                group.create_task(self._follow(replica))

    async def _follow(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(replica.health.next_look_s):
                    await replica.look_now.wait()
            except TimeoutError:
                pass
            replica.look_now.clear()
            if replica.health.next_look_s <= loop.time():
                await self._look_surely(replica)

    async def _look_surely(self, replica: Replica) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            await self.look(replica)
        except Exception as error:
            _log.exception("slo-opt: a look at %s failed", replica.url)
            self._missed(replica, began_s, f"a look failed: {error!r}", sure=True)

    async def look(self, replica: Replica) -> None:
        """One look. Nothing that a replica answers makes it raise."""
        loop = asyncio.get_running_loop()
        health, began_s = replica.health, loop.time()
        try:
            status, _ = await self._get(replica, "/health")
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            cause = f"no answer within {self._timeout.total:g} s" if late else f"cannot be reached ({_words(error)})"
            self._missed(replica, began_s, cause, sure=not late)
            return
        if status != 200:
            self._missed(replica, began_s, f"/health answers {status}", sure=True)
            return
        came_up = not health.up
        await self._read(replica, came_up)
        now_s, since_s = loop.time(), health.down_since_s
        health.answered(now_s)
        if came_up:
            after = "" if since_s is None else f" again, after {now_s - since_s:.1f} s"
            _log.info("slo-opt: %s is up%s", replica.url, after)
            self._fleet.joined()

    def _missed(self, replica: Replica, began_s: float, cause: str, *, sure: bool) -> None:
        health, now_s = replica.health, asyncio.get_running_loop().time()
        if health.missed(began_s, now_s, cause, sure=sure):
            _log.warning("slo-opt: %s is down: %s", replica.url, cause)
        failing_since_s = health.failing_since_s
        if not health.up and failing_since_s is not None and now_s - failing_since_s >= self._patience_s:
            # Whoever waits for its first token goes elsewhere; a stream that stands still ends with an error.
            lost = replica.lose_silent(failing_since_s, now_s)
            if lost:
                _log.warning("slo-opt: %d requests at %s heard nothing since, and are given up", lost, replica.url)

    async def _read(self, replica: Replica, anew: bool) -> None:
        """What the engine reports and offers, as far as it can be had."""
        asked_s = asyncio.get_running_loop().time()
        try:
            status, text = await self._get(replica, "/metrics")
            if status == 200:
                replica.books.reported(read_report(text.decode(errors="replace")), asked_s)
            replica.looks += 1
            if anew or replica.looks % _MODELS_EVERY == 0:
                status, text = await self._get(replica, "/v1/models")
                replica.models = read_models(text) if status == 200 else []
                longest = [model.get("max_model_len") for model in replica.models]
                lengths = [most for most in longest if type(most) is int and 0 < most <= 1 << 40]
                replica.books.limits(max(lengths, default=None))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            _log.debug("slo-opt: %s tells nothing of itself: %r", replica.url, error)

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        async with self._session.get(replica.url + path, timeout=self._timeout, allow_redirects=False) as answer:
            text = b""
            async for piece in answer.content.iter_any():
                text += piece
                if len(text) > _MOST_BYTES:
                    raise ValueError(f"{path} has more than {_MOST_BYTES} bytes")
            return answer.status, text


def read_models(text: bytes) -> list[dict[str, Any]]:
    """The models in an answer of ``/v1/models``; none where it is no such answer."""
    try:
        rows = json.loads(text)["data"]
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
