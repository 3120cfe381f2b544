"""How many tokens each event of a completion stream holds, and when they came."""

from typing import Any

import msgspec

from slo_opt.replay.sse import StreamFormatError


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


class TokenCounter:
    """Follows one stream.

    Parameters
    ----------
    wanted_tokens : int
        Tokens that were asked for.

    Attributes
    ----------
    times_s : list of float
        When each token came.
    token_ids : list of int
        Their ids, as far as the server tells them.
    estimated : bool
        Whether events without a count were taken as one token each.
    finish_reason : str or None
        As the server gives it.
    prompt_tokens, cached_tokens : int or None
        The server's count of the prompt, and of those found in its prefix cache.
    ended : bool
        Whether the stream said that it has ended.
    """

    def __init__(self, wanted_tokens: int) -> None:
        self.wanted_tokens = wanted_tokens
        self.times_s: list[float] = []
        self.token_ids: list[int] = []
        self.estimated = False
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.ended = False

    def take(self, event: bytes, now_s: float) -> None:
        """One event.

        Parameters
        ----------
        event : bytes
            Its data.
        now_s : float
            When it came.

        Raises
        ------
        StreamFormatError
            It is no event of a completion, it reports an error, or there are more tokens than were asked for.
        """
        if self.ended:
            return
        if event.strip() == b"[DONE]":
            self.ended = True
            return
        try:
            chunk = _DECODER.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            shown = event[:60].decode(errors="replace")
            raise StreamFormatError(f"an event is no completion ({error}): {shown!r}") from None
        if chunk.error is not None:
            raise StreamFormatError(f"the server reports an error: {error_text(chunk.error)}")
        for choice in chunk.choices[:1]:  # one was asked for
            self._choice(choice, chunk.usage, now_s)
        if chunk.usage is not None:
            self._usage(chunk.usage, now_s)

    def _choice(self, choice: _Choice, usage: _Usage | None, now_s: float) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.token_ids is not None:
            self.token_ids += choice.token_ids
            self._add(len(choice.token_ids), now_s)
        elif choice.text and (usage is None or usage.completion_tokens is None):
            self.estimated = True
            self._add(1, now_s)

    def _usage(self, usage: _Usage, now_s: float) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.prompt_tokens_details is not None:
            self.cached_tokens = usage.prompt_tokens_details.cached_tokens
        if usage.completion_tokens is not None:
            # Tokens without text that no event told of count as late as they can have come.
            self._add(max(usage.completion_tokens - len(self.times_s), 0), now_s)

    def _add(self, count: int, now_s: float) -> None:
        if len(self.times_s) + count > self.wanted_tokens:
            raise StreamFormatError(
                f"{len(self.times_s) + count} tokens or more came where {self.wanted_tokens} were asked for"
            )
        self.times_s += [now_s] * count


def error_text(error: Any) -> str:
    """The message of an error object of the API, or what there is instead."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())[:300]
