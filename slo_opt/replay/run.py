"""Replay an instance on a live server."""

import asyncio
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from slo_opt.domain.errors import SloOptError
from slo_opt.domain.instance import Instance
from slo_opt.replay.call import Outcome
from slo_opt.replay.generator import Conversation, LoadGenerator, Report
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.result import ReplayRun, ServedRequest, ServedRound
from slo_opt.replay.server import Server, authorization, find_server, require_aiohttp

__all__ = ["NothingSentError", "Outcome", "ReplayOptions", "ReplayRun", "replay", "replay_async"]

_T = TypeVar("_T")
_OPTIONS = ReplayOptions()


class NothingSentError(SloOptError):
    """The replay was stopped before its first request."""


def replay(
    instance: Instance, url: str, options: ReplayOptions = _OPTIONS, *, report: Report | None = None
) -> ReplayRun:
    """Send the requests of an instance to a server, and measure when each token comes back.

    The first Ctrl-C stops the sending and cuts off what is under way: the run comes back with `cut` set.

    Parameters
    ----------
    instance : Instance
        Requests with arrivals, lengths and SLOs; its engine model serves for slowdowns of the TTFT alone.
    url : str
        Of an OpenAI-compatible server.
    options : ReplayOptions
        Model, SLO fields, seed, limits.
    report : callable, optional
        Is told now and then how far it is: a phrase, and the share done.

    Raises
    ------
    UnusableServerError
        The server cannot be reached, or has no such model.
    InvalidInputError
        The URL or the API key means nothing.
    SolverNotAvailableError
        aiohttp is not installed.
    KeyboardInterrupt
        Ctrl-C before the first request was sent.
    """

    async def interruptible() -> ReplayRun | None:
        stop = asyncio.Event()
        with _stopped_by_interrupt(stop):
            return await _replay(instance, url, options, report, stop)

    run = asyncio.run(interruptible())
    if run is None:
        raise KeyboardInterrupt
    return run


async def replay_async(
    instance: Instance,
    url: str,
    options: ReplayOptions = _OPTIONS,
    *,
    report: Report | None = None,
    stop: asyncio.Event | None = None,
) -> ReplayRun:
    """The same inside an event loop. `stop` ends it early: nothing more is sent, what is under way is cut off.

    Raises
    ------
    NothingSentError
        `stop` was set before the first request was sent; else as `replay`.
    """
    run = await _replay(instance, url, options, report, asyncio.Event() if stop is None else stop)
    if run is None:
        raise NothingSentError("the replay was stopped before its first request")
    return run


async def _replay(
    instance: Instance, url: str, options: ReplayOptions, report: Report | None, stop: asyncio.Event
) -> ReplayRun | None:
    """None where it was stopped before the first request."""
    require_aiohttp()
    import aiohttp

    # A connection for each call: one that the server closes while idle would look like a failure.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=authorization(options.api_key_env)) as session:
        server = await _unless_stopped(find_server(session, url, options.model), stop)
        if server is None:
            return None
        generator = LoadGenerator(instance, server, session, options)
        if options.warmup:
            if report is not None:
                report("warming up", None)
            await _unless_stopped(generator.warm_up(), stop)
        began_s = time.monotonic()
        complete = not stop.is_set() and await generator.run(stop, report)
        wall_s = time.monotonic() - began_s
    if not generator.conversations:
        return None
    return _collect(instance, server, options, generator, not complete, wall_s)


async def _unless_stopped(work: Coroutine[Any, Any, _T], stop: asyncio.Event) -> _T | None:
    """The result of some work; None where it was given up because the run was stopped."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def _collect(
    instance: Instance,
    server: Server,
    options: ReplayOptions,
    generator: LoadGenerator,
    cut: bool,
    wall_s: float,
) -> ReplayRun:
    sent = generator.conversations
    return ReplayRun(
        instance=instance.with_requests(instance.requests[: len(sent)]),
        server=server,
        options=options,
        requests=tuple(_served(conversation) for conversation in sent),
        cut=cut,
        num_throttled=generator.num_throttled,
        began_unix_s=generator.began_unix_s,
        wall_s=wall_s,
    )


def _served(conversation: Conversation) -> ServedRequest:
    rounds = tuple(
        ServedRound(
            due_s=answer.due_s,
            sent_s=answer.sent_s,
            tokens_s=tuple(answer.counter.times_s),
            prompt_tokens=answer.counter.prompt_tokens or asked.context_tokens,
            cached_tokens=answer.counter.cached_tokens,
            estimated=answer.counter.estimated,
        )
        for answer, asked in zip(conversation.answers, conversation.rounds, strict=False)
    )
    return ServedRequest(conversation.outcome, conversation.cause, rounds)


@contextmanager
def _stopped_by_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Let the first Ctrl-C set the event, and the second end the program, where signals can be caught."""
    loop = asyncio.get_running_loop()
    caught = threading.current_thread() is threading.main_thread()

    def first() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    if caught:
        try:
            loop.add_signal_handler(signal.SIGINT, first)
        except NotImplementedError:  # on Windows
            caught = False
    try:
        yield
    finally:
        if caught:
            loop.remove_signal_handler(signal.SIGINT)
