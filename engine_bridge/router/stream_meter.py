"""How many tokens pass in an answer, told from its bytes without holding them up."""

from typing import Any

import msgspec

from slo_opt.replay.sse import EventParser, StreamFormatError

MAX_WHOLE_BYTES = 4 << 20  # of an answer that is no stream: a longer one is not read for its usage


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None  # the names of /v1/responses
    output_tokens: int | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    delta: Any = None  # of /v1/responses


class _Whole(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


_chunks = msgspec.json.Decoder(_Chunk)
_wholes = msgspec.json.Decoder(_Whole)


class StreamMeter:
    """Counts the tokens of the first choice of a stream. Nothing that passes makes it raise.

    An event counts the token ids that it tells; else, if it has text, one token; a count of all tokens that comes with
    it adds what was missed.

    Attributes
    ----------
    tokens : int
        So far.
    prompt_tokens : int or None
        As the replica counts them.
    ended, failed : bool
        The stream said that it has ended; that something went wrong.
    malformed : int
        Events that are no answer of the API.
    """

    def __init__(self) -> None:
        self._parser: EventParser | None = EventParser()
        self._one_choice = True
        self.tokens = 0
        self.prompt_tokens: int | None = None
        self.ended = False
        self.failed = False
        self.malformed = 0

    def feed(self, piece: bytes) -> int:
        """Tokens that came with these bytes."""
        if self._parser is None:
            return 0
        try:
            events = self._parser.feed(piece)
        except StreamFormatError:
            self._parser = None
            self.malformed += 1
            return 0
        return sum(map(self._event, events))

    def _event(self, event: bytes) -> int:
        if event.strip() == b"[DONE]":
            self.ended = True
            return 0
        try:
            chunk = _chunks.decode(event)
        except (ValueError, RecursionError):
            self.malformed += 1
            return 0
        self.failed |= chunk.error is not None
        count = 1 if isinstance(chunk.delta, str) and chunk.delta else 0
        for choice in chunk.choices:
            if choice.index == 0:
                count += _tokens_of(choice)
            else:
                self._one_choice = False
        if chunk.usage is not None:
            count = self._usage(chunk.usage, count)
        self.tokens += count
        return count

    def _usage(self, usage: _Usage, count: int) -> int:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None and self._one_choice:
            return max(count, usage.completion_tokens - self.tokens)
        return count


def _tokens_of(choice: _Choice) -> int:
    if choice.token_ids is not None:
        return len(choice.token_ids)
    delta = choice.delta
    said = choice.text or (delta and (delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls))
    return 1 if said else 0


class WholeMeter:
    """Reads the usage of an answer that comes in one piece.

    Attributes
    ----------
    tokens : int
        Output tokens, all choices together; 0 until `finish`, and where the answer does not tell.
    prompt_tokens : int or None
        As the replica counts them.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.tokens = 0
        self.prompt_tokens: int | None = None

    def feed(self, piece: bytes) -> int:
        """Keep the bytes; no token is told before the end."""
        self._size += len(piece)
        if self._size <= MAX_WHOLE_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
        return 0

    def finish(self) -> None:
        """Read what came."""
        try:
            usage = _wholes.decode(b"".join(self._pieces)).usage
        except (ValueError, RecursionError):
            return
        if usage is not None:
            self.prompt_tokens = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
            told = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
            self.tokens = max(0, told or 0)


def ends_event(tail: bytes) -> bool:
    """Whether the bytes of a stream end with an empty line: another event can follow."""
    return tail.endswith((b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r\n"))
