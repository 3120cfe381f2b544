"""A log of JSON lines written beside a running engine: buffered, bounded in size, never in the way."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

_log = logging.getLogger(__name__)


class LineLog:
    """Appends lines to a file that begins with a header; never raises.

    A file that is there already, or that has grown to its size, becomes ``path.1``, that one ``path.2``, and so on.

    Parameters
    ----------
    path : Path
        Its folder is made if missing.
    header : mapping
        The first line.
    what : str
        What it holds, for the one warning when lines are lost.
    flush_lines, flush_s : int, float
        Written after so many lines, or with the first line that comes so many seconds after the last writing.
    max_bytes, keep : int
        The size at which a file ends, and how many older ones stay.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    lost_lines : int
        Lines that could not be written.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, object],
        what: str,
        *,
        flush_lines: int = 256,
        flush_s: float = 5.0,
        max_bytes: int = 64 << 20,
        keep: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._what = Path(path), what
        self._header = dict(header)
        self._flush_lines, self._flush_s = flush_lines, flush_s
        self._max_bytes, self._keep = max_bytes, keep
        self._clock = clock
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._flushed_s = clock()
        self._size = max_bytes  # the first writing begins a file
        self._warned = False
        self.lost_lines = 0

    def write(self, line: object) -> None:
        """Take a line; it reaches the file with the next flush."""
        try:
            self._lines.append(self._encode(line) + b"\n")
        except Exception as error:
            self._lose(1, error)
            return
        if len(self._lines) >= self._flush_lines or self._clock() - self._flushed_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; what the disk refuses is lost and counted."""
        lines, self._lines = self._lines, []
        self._flushed_s = self._clock()
        if not lines:
            return
        try:
            self._append(b"".join(lines))
        except Exception as error:
            self._lose(len(lines), error)

    def close(self) -> None:
        """Write the rest."""
        self.flush()

    def _append(self, data: bytes) -> None:
        if self._size >= self._max_bytes:
            self._turn_over()
        if not self._size:
            data = self._encode(self._header) + b"\n" + data
        with self._path.open("ab", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                file.truncate(whole)  # no half a line in the middle of the file
                raise
        self._size += len(data)

    def _turn_over(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(self._keep, 0, -1):
            newer = self._part(number - 1)
            if newer.exists():
                newer.replace(self._part(number))
        self._path.unlink(missing_ok=True)  # where no older one is kept
        self._size = 0

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _lose(self, lines: int, error: Exception) -> None:
        self.lost_lines += lines
        if not self._warned:
            self._warned = True
            _log.warning("slo-opt: the %s %s loses lines: %s", self._what, self._path, error)
