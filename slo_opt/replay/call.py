"""One call of the completions API, from sending to its last token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from slo_opt.replay.sse import EventParser, StreamFormatError
from slo_opt.replay.token_counter import TokenCounter, error_text

if TYPE_CHECKING:
    import aiohttp

_MAX_ERROR_BYTES = 64 << 10


class Outcome(StrEnum):
    """How a call or a request ended.

    Attributes
    ----------
    FINISHED
        With all its tokens.
    REFUSED
        The server sent it away: HTTP 429, 503 with ``Retry-After``, or a stream aborted before its first token.
    FAILED
        Another HTTP status, a lost connection, the time limit, an answer that is no stream of completions, or more or
        fewer tokens than were asked for.
    CUT
        Under way when the replay was stopped.
    """

    FINISHED = "finished"
    REFUSED = "refused"
    FAILED = "failed"
    CUT = "cut"


@dataclass(slots=True)
class Answer:
    """What came back from a call.

    Parameters
    ----------
    due_s, sent_s : float
        When it should have been sent, and was; seconds from the start of the trace.
    counter : TokenCounter
        Its tokens.
    outcome : Outcome
        How it ended; CUT until it has.
    cause : str
        Why it was refused or failed.
    retry_after_s : float or None
        When the server wants to be asked again, where it says so in seconds.
    """

    due_s: float
    sent_s: float
    counter: TokenCounter
    outcome: Outcome = Outcome.CUT
    cause: str = ""
    retry_after_s: float | None = None

    def end(self, outcome: Outcome, cause: str = "") -> None:
        """Settle how it ended."""
        self.outcome, self.cause = outcome, cause


async def call(
    session: "aiohttp.ClientSession",
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    answer: Answer,
    clock: Callable[[], float],
    timeout_s: float,
) -> None:
    """Send a call and read its stream into `answer`, which is right at any moment: a cancelled call keeps its tokens.

    Parameters
    ----------
    session : aiohttp.ClientSession
        Keeps the connections.
    url : str
        Of the completions API.
    body : bytes
        JSON.
    headers : mapping of str to str
        Beyond those of the session.
    answer : Answer
        To fill.
    clock : callable
        The time, seconds; read when bytes have arrived.
    timeout_s : float
        For all of it.
    """
    import aiohttp

    counter = answer.counter
    sent = {"Content-Type": "application/json", "Accept": "text/event-stream", **headers}
    try:
        wait = aiohttp.ClientTimeout(total=timeout_s)
        async with session.post(url, data=body, headers=sent, timeout=wait, allow_redirects=False) as response:
            if response.status != 200:
                await _refusal(response, answer)
                return
            if response.content_type != "text/event-stream":
                shown = await _beginning(response)
                answer.end(Outcome.FAILED, f"answered {response.content_type}, not a stream: {shown}")
                return
            parser = EventParser()
            async for piece in response.content.iter_any():
                now_s = clock()
                for event in parser.feed(piece):
                    counter.take(event, now_s)
    except TimeoutError:
        if len(counter.times_s) < counter.wanted_tokens:
            answer.end(Outcome.FAILED, f"timeout after {timeout_s:g} s")
            return
    except StreamFormatError as error:
        answer.end(Outcome.FAILED, str(error))
        return
    except aiohttp.ClientPayloadError:
        if len(counter.times_s) < counter.wanted_tokens:
            answer.end(Outcome.FAILED, "connection lost in the middle of the stream")
            return
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if len(counter.times_s) < counter.wanted_tokens:
            answer.end(Outcome.FAILED, f"connection failed: {error_text(error) or type(error).__name__}")
            return
    _judge(answer)


def _judge(answer: Answer) -> None:
    """How a stream that has ended went."""
    counter = answer.counter
    count = len(counter.times_s)
    if count == counter.wanted_tokens:
        answer.end(Outcome.FINISHED)
    elif not count and (counter.finish_reason == "abort" or (counter.ended and counter.finish_reason is None)):
        answer.end(Outcome.REFUSED, "aborted before its first token")
    elif counter.finish_reason is None and not counter.ended:
        answer.end(Outcome.FAILED, "the stream ended in the middle")
    else:
        answer.end(Outcome.FAILED, f"too few tokens, finish_reason {counter.finish_reason}")


async def _refusal(response: "aiohttp.ClientResponse", answer: Answer) -> None:
    status, wait = response.status, response.headers.get("Retry-After")
    if wait is not None:
        try:
            answer.retry_after_s = float(wait)
        except ValueError:  # a date
            answer.retry_after_s = None
    sent_away = status == 429 or (status == 503 and wait is not None)
    shown = await _beginning(response)
    answer.end(Outcome.REFUSED if sent_away else Outcome.FAILED, f"HTTP {status}: {shown}")


async def _beginning(response: "aiohttp.ClientResponse") -> str:
    """The message of an error, or the beginning of whatever came."""
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MAX_ERROR_BYTES:
            break
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = body[:1000].decode(errors="replace")
    if isinstance(document, dict):
        document = document.get("error", document)
    return error_text(document) or "no text"
