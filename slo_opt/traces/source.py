"""The bytes of a trace file as text: plain or gzip, a path or standard input."""

import gzip
import io
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from slo_opt.domain.errors import TraceFormatError

MAX_BYTES = 1 << 30  # unpacked; an hour of the largest public trace is 100 times smaller
_GZIP_MAGIC = b"\x1f\x8b"
_SUFFIXES = (".gz", ".csv", ".jsonl", ".json", ".txt")


@dataclass(frozen=True, slots=True)
class Source:
    """A trace file in memory.

    Parameters
    ----------
    path : str
        For messages; ``<stdin>`` for standard input.
    text : str
        Its content, without a byte order mark.
    """

    path: str
    text: str

    @property
    def name(self) -> str:
        """File name without its folder and its endings."""
        name = Path(self.path).name
        while (suffix := Path(name).suffix) in _SUFFIXES:
            name = name.removesuffix(suffix)
        return name.strip("<>") or "trace"

    def first_line(self) -> str:
        """First line that is not blank, without its line end; empty if there is none."""
        start = len(self.text) - len(self.text.lstrip())
        return self.text[start:].split("\n", 1)[0].rstrip("\r")

    def error(self, place: str | int, problem: str, remedy: str) -> TraceFormatError:
        """An error about this file; an integer place is a line number."""
        return TraceFormatError(self.path, f"line {place}" if isinstance(place, int) else place, problem, remedy)


def load(path: str | Path, unit: str = "request") -> Source:
    """Read a file, or standard input for ``-``; unpack gzip by its content, not its name.

    Parameters
    ----------
    path : str or Path
        The file.
    unit : str
        What it holds, for messages.

    Raises
    ------
    TraceFormatError
        The file cannot be read, is damaged gzip, not UTF-8, empty, or unpacks to more than 1 GiB.
    """
    name = "<stdin>" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if name == "<stdin>" else _read_file(Path(path))
    except FileNotFoundError:
        raise TraceFormatError(name, "file", "there is no such file", "Check the path.") from None
    except IsADirectoryError:
        raise TraceFormatError(name, "file", "this is a folder; expected a file", "Name a file in it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceFormatError(name, "file", f"cannot be read: {reason}", "Check the path and its rights.") from None
    if data.startswith(_GZIP_MAGIC):
        data = _unpack(name, data)
    if len(data) > MAX_BYTES:
        raise TraceFormatError(name, "file", f"holds more than {MAX_BYTES} bytes unpacked", "Cut the trace into parts.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TraceFormatError(
            name,
            f"line {line}",
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; expected UTF-8 text",
            "Convert the file, for example: iconv -f latin1 -t utf-8 (or -f utf-16).",
        ) from None
    if not text.strip():
        raise TraceFormatError(name, "file", f"is empty; expected at least one {unit}", f"Give a file with {unit}s.")
    return Source(name, text)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _unpack(name: str, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(MAX_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise TraceFormatError(
            name, "file", f"is damaged gzip ({error}); expected a complete gzip stream", "Fetch or compress it again."
        ) from None
