"""Sends the requests of an instance: each at its arrival, whatever the server does; later rounds after their pause."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.replay import slo_fields
from slo_opt.replay.call import Answer, Outcome, call
from slo_opt.replay.count_by import CountBy
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.prompts import PromptMaker
from slo_opt.replay.rounds import Round, rounds_of
from slo_opt.replay.server import Server, UnusableServerError
from slo_opt.replay.slo_fields import SloFields
from slo_opt.replay.token_counter import TokenCounter

if TYPE_CHECKING:
    import aiohttp

Report = Callable[[str, float | None], None]

_AHEAD = 256  # first calls kept ready, so that a burst leaves at once
_SLACK_S = 0.005  # time that is not spent on preparing before a call is due
_REPORT_S = 0.25


class Conversation:
    """One request on its way: its rounds so far.

    Parameters
    ----------
    index : int
        In the instance.
    rounds : tuple of Round
        All that it will have.

    Attributes
    ----------
    answers : list of Answer
        To the calls sent so far.
    """

    def __init__(self, index: int, rounds: tuple[Round, ...]) -> None:
        self.index, self.rounds = index, rounds
        self.answers: list[Answer] = []

    @property
    def outcome(self) -> Outcome:
        """How it ended: as its last call did; CUT where rounds are missing."""
        last = self.answers[-1].outcome if self.answers else Outcome.CUT
        complete = last is not Outcome.FINISHED or len(self.answers) == len(self.rounds)
        return last if complete else Outcome.CUT

    @property
    def cause(self) -> str:
        """Why it was refused or failed."""
        return self.answers[-1].cause if self.answers else ""


class LoadGenerator:
    """Drives a server with an instance.

    Time is that of the trace: it is the first arrival when the first request is due.

    Parameters
    ----------
    instance : Instance
        What to send.
    server : Server
        Where to.
    session : aiohttp.ClientSession
        Keeps the connections.
    options : ReplayOptions
        How.

    Attributes
    ----------
    conversations : list of Conversation
        Of the requests sent so far, in their order.
    began_unix_s : float
        Wall-clock time of the first arrival.
    num_throttled : int
        Calls that `max_concurrency` held back.
    """

    def __init__(
        self, instance: Instance, server: Server, session: "aiohttp.ClientSession", options: ReplayOptions
    ) -> None:
        self._instance, self._server, self._session, self._options = instance, server, session, options
        self._prompts = PromptMaker(options.seed, options.vocab_size)
        self._priorities = slo_fields.priorities(instance) if options.priority_by_slo else {}
        self._places = asyncio.Semaphore(options.max_concurrency)
        self._zero_s = 0.0
        self._ready: deque[tuple[Conversation, list[int], bytes]] = deque()
        self._first_calls = self._make_first_calls()
        self.conversations: list[Conversation] = []
        self.began_unix_s = 0.0
        self.num_throttled = 0

    def clock(self) -> float:
        """Seconds from the start of the trace."""
        return time.monotonic() - self._zero_s

    async def warm_up(self) -> None:
        """Send the first requests of the trace one by one, with other tokens, and forget them.

        Raises
        ------
        UnusableServerError
            One of them failed.
        """
        for number in range(self._options.warmup):
            index = number % len(self._instance.requests)
            request = self._instance.requests[index]
            first = rounds_of(request)[0]
            prompt = self._prompts.first(number, request, first, warm_up=True)
            answer = Answer(0.0, self.clock(), TokenCounter(first.output_tokens))
            await self._call(first, self._body(first, prompt), answer)
            if answer.outcome is Outcome.FAILED:
                raise UnusableServerError(f"{self._server.base_url}: a warm-up request failed: {answer.cause}")

    async def run(self, stop: asyncio.Event, report: Report | None = None) -> bool:
        """Send everything; whether it went to its end.

        Parameters
        ----------
        stop : asyncio.Event
            Once it is set, nothing more is sent, and what is under way is cut off.
        report : callable, optional
            Is told now and then how far it is.
        """
        while len(self._ready) < _AHEAD and self._prepare():
            pass
        self.began_unix_s = time.time()
        self._zero_s = time.monotonic() - self._instance.requests[0].arrival_s
        sending = asyncio.create_task(self._send_all())
        stopping = asyncio.create_task(stop.wait())
        waiting = {sending, stopping}
        try:
            while not (sending.done() or stopping.done()):
                await asyncio.wait(waiting, timeout=_REPORT_S, return_when=asyncio.FIRST_COMPLETED)
                if report is not None:
                    report(self._phrase(), len(self.conversations) / len(self._instance.requests))
            if not sending.done():
                return False
            sending.result()
            return True
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _phrase(self) -> str:
        counts = Counter(conversation.outcome for conversation in self.conversations)
        total = len(self._instance.requests)
        lost = counts[Outcome.REFUSED] + counts[Outcome.FAILED]
        return (
            f"{len(self.conversations):,} of {total:,} requests sent, {counts[Outcome.CUT]:,} under way, "
            f"{counts[Outcome.FINISHED]:,} finished, {lost:,} refused or failed"
        )

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for request in self._instance.requests:
                while not self._ready or self._in_time(request.arrival_s):
                    if not self._prepare():
                        break
                    await asyncio.sleep(0)  # what has arrived in the meantime is not to be stamped late
                conversation, prompt, body = self._ready.popleft()
                await self._sleep_until(request.arrival_s)
                self.conversations.append(conversation)
                tasks.create_task(self._converse(request, conversation, prompt, body))

    def _in_time(self, due_s: float) -> bool:
        return len(self._ready) < _AHEAD and due_s - self.clock() > _SLACK_S

    def _prepare(self) -> bool:
        """Make one more first call ready; whether there was one."""
        following = next(self._first_calls, None)
        if following is not None:
            self._ready.append(following)
        return following is not None

    def _make_first_calls(self) -> Iterator[tuple[Conversation, list[int], bytes]]:
        for index, request in enumerate(self._instance.requests):
            conversation = Conversation(index, rounds_of(request))
            first = conversation.rounds[0]
            prompt = self._prompts.first(index, request, first)
            body = self._body(first, prompt)
            yield conversation, prompt if len(conversation.rounds) > 1 else [], body

    async def _converse(self, request: Request, conversation: Conversation, prompt: list[int], body: bytes) -> None:
        """All rounds of a request, until one does not finish."""
        due_s = request.arrival_s + request.stages[0].pause_s
        for number, served in enumerate(conversation.rounds):
            if number:
                before = conversation.answers[-1].counter
                prompt = self._prompts.later(conversation.index, number, prompt + before.token_ids, served)
                body = self._body(served, prompt)
                due_s = before.times_s[-1] + served.pause_s
            await self._sleep_until(due_s)
            self.num_throttled += self._places.locked()
            async with self._places:
                answer = Answer(due_s, self.clock(), TokenCounter(served.output_tokens))
                conversation.answers.append(answer)
                await self._call(served, body, answer)
            if answer.outcome is not Outcome.FINISHED:
                return

    async def _sleep_until(self, due_s: float) -> None:
        await asyncio.sleep(max(due_s - self.clock(), 0.0))

    async def _call(self, served: Round, body: bytes, answer: Answer) -> None:
        wanted = self._options.slo_fields is SloFields.HEADERS
        headers = slo_fields.headers(self._instance, served) if wanted else {}
        url, timeout_s = self._server.completions_url, self._options.timeout_s
        await call(self._session, url, body, headers, answer, self.clock, timeout_s)

    def _body(self, served: Round, prompt: list[int]) -> bytes:
        """The body of a call."""
        count_by, fields = self._options.count_by, self._options.slo_fields
        stream_options = {"include_usage": True}
        if count_by is CountBy.USAGE:
            stream_options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": self._server.model,
            "prompt": prompt,
            "max_tokens": served.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": stream_options,
        }
        if count_by is CountBy.TOKEN_IDS:
            body["return_token_ids"] = True
        if fields in (SloFields.XARGS, SloFields.LIMITS):
            body["vllm_xargs"] = slo_fields.xargs(self._instance, served, name_class=fields is SloFields.XARGS)
        if self._priorities:
            body["priority"] = self._priorities[served.stages[-1].slo]
        return msgspec.json.encode(body)
