"""What a router reads of a request's body: its model, and how long its prompt is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

FIRST_BYTES_PER_TOKEN = 4.0  # of English text; what answers tell of their prompts corrects it
_FADING = 0.98


class _Part(msgspec.Struct, frozen=True):
    text: str | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | list[_Part] | None = None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages = msgspec.json.Decoder(list[_Message])
_texts = msgspec.json.Decoder(str | list[str])
_name = msgspec.json.Decoder(str)


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a request.

    Parameters
    ----------
    model : str or None
        The model that it names.
    prompt_tokens : int
        Token ids in its prompt.
    text_bytes : int
        Text in its prompt, of messages and tools as well, in UTF-8. Images and sounds are not counted.
    """

    model: str | None = None
    prompt_tokens: int = 0
    text_bytes: int = 0


def shape_of(body: bytes) -> Shape:
    """The size of a request by its body; nothing where that is no JSON object.

    Nothing makes it raise: what a replica does not understand it says itself.
    """
    try:
        members = _members.decode(body)
    except (ValueError, RecursionError):
        return Shape()
    tokens, text = 0, 0
    for key in ("prompt", "input"):
        if key in members:
            more_tokens, more_text = _prompt(bytes(members[key]))
            tokens, text = tokens + more_tokens, text + more_text
    for key in ("messages", "instructions", "system", "tools"):
        if key in members:
            text += _text_bytes(bytes(members[key]))
    return Shape(_model(members), tokens, text)


def _model(members: Mapping[str, msgspec.Raw]) -> str | None:
    try:
        return _name.decode(members["model"])
    except (KeyError, ValueError):
        return None


def _prompt(raw: bytes) -> tuple[int, int]:
    """Token ids and bytes of text in a prompt: text, a list of texts, token ids, lists of token ids, or messages."""
    if raw[:1] == b"[":
        first = raw[1:64].lstrip(b" \t\r\n[")[:1]
        if first.isdigit() or first == b"-":
            return raw.count(b",") + 1, 0  # four times as fast as reading them, with brackets between lists or not
    return 0, _text_bytes(raw)


def _text_bytes(raw: bytes) -> int:
    """Bytes of text in a JSON value; of one that has none of the known shapes, all of it."""
    try:
        texts = _texts.decode(raw)
        return len(texts.encode(errors="replace")) if isinstance(texts, str) else sum(map(_length, texts))
    except (ValueError, RecursionError):
        pass
    try:
        return sum(_message_bytes(message) for message in _messages.decode(raw))
    except (ValueError, RecursionError):
        return len(raw)


def _message_bytes(message: _Message) -> int:
    if isinstance(message.content, list):
        return sum(_length(part.text) for part in message.content if part.text)
    return _length(message.content or "")


def _length(text: str) -> int:
    return len(text.encode(errors="replace"))


class TextMeasure:
    """Tokens of a text by its length, learned from answers that tell how long their prompt was."""

    def __init__(self) -> None:
        self._tokens = 1000.0
        self._bytes = self._tokens * FIRST_BYTES_PER_TOKEN

    def tokens(self, shape: Shape) -> int:
        """Tokens of a prompt, at least 1: its ids, and its text as far as texts went before."""
        return max(1, shape.prompt_tokens + math.ceil(shape.text_bytes * self._tokens / self._bytes))

    def observe(self, shape: Shape, prompt_tokens: int) -> None:
        """A prompt of text had so many tokens; long ones count for more, later ones too."""
        if shape.text_bytes and 0 < prompt_tokens - shape.prompt_tokens <= 4 * shape.text_bytes + 256:
            self._tokens = _FADING * self._tokens + prompt_tokens - shape.prompt_tokens
            self._bytes = _FADING * self._bytes + shape.text_bytes
