"""Server-sent events from bytes that arrive in any pieces."""

MAX_EVENT_BYTES = 64 << 20  # more than any prompt that a server could echo; less than would fill the memory


class StreamFormatError(ValueError):
    """Bytes that are no stream of the completions API."""


class EventParser:
    """Collects the data of each event.

    Lines end with LF, CR or CRLF; ``data`` lines of one event are joined with LF; comments and other fields are
    skipped. An event that has not ended with an empty line when the stream ends is none.

    References
    ----------
    HTML living standard, section 9.2.6, "Interpreting an event stream".
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # of a line that has not ended
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end with this piece.

        Raises
        ------
        StreamFormatError
            An event is larger than 64 MiB.
        """
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        self._rest += piece
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise StreamFormatError(f"an event is larger than {MAX_EVENT_BYTES >> 20} MiB")
        if b"\n" not in piece and b"\r" not in piece:
            return []
        text = bytes(self._rest)
        self._after_cr = text.endswith(b"\r")
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(lines.pop())
        events = [event for line in lines if (event := self._line(line)) is not None]
        self._size = sum(map(len, self._data))
        return events

    def _line(self, line: bytes) -> bytes | None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data.clear()
            return event
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
