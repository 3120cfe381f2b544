"""The decision log: one line of JSON for each request at its end, for comparing a day's traffic with its optimum."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

_log = logging.getLogger(__name__)

FORMAT = "slo-opt-decisions"
VERSION = 1


class ServedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request, as it was served. Times are seconds, limits milliseconds; no prompt, no token ids.

    Parameters
    ----------
    id : str
        The engine's own.
    arrival_unix_s : float
        Arrival, seconds since 1970.
    prompt_tokens, cached_tokens, output_tokens : int
        Tokens of the whole prompt, those of them that the prefix cache held, and tokens produced.
    slo : str
        SLO class.
    ttft_limit_ms, tpot_ms, thinking_tpot_ms : float or None
        Its limits; `thinking_tpot_ms` where it thinks first.
    thinking_tokens : int or None
        Output tokens of its thinking phase.
    weight : float
        Value of attaining it.
    best_effort : bool
        Under no SLO from the start.
    outcome, reason : str
        ``admitted``, ``best_effort``, ``refused``, ``aborted`` or ``malformed``, and why.
    first_token_s, last_token_s : float or None
        After the arrival.
    lateness_s : float or None
        Of the token that was latest against its deadline; negative where all were early.
    attained : bool or None
        Whether every token was on time; None under no SLO.
    preemptions : int
        How often its KV was dropped.
    """

    id: str
    arrival_unix_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    slo: str = "default"
    ttft_limit_ms: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    thinking_tokens: int | None = None
    weight: float = 1.0
    best_effort: bool = False
    outcome: str = "admitted"
    reason: str = ""
    first_token_s: float | None = None
    last_token_s: float | None = None
    lateness_s: float | None = None
    attained: bool | None = None
    preemptions: int = 0


class DecisionLog:
    """Appends served requests to a file. Never raises and keeps a bounded buffer: what cannot be written is counted.

    Parameters
    ----------
    path : Path
        The file; older parts are renamed to ``path.1``, ``path.2`` and so on, ``.1`` the newest of them.
    header : mapping
        Put into the first line beside format, version and start time: engine model, configuration.
    flush_lines, flush_s : int, float
        Written after so many lines, or with the first line that comes so many seconds after the last writing.
    max_bytes, keep : int
        The size at which a part ends, and how many older parts stay.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any] | None = None,
        *,
        flush_lines: int = 64,
        flush_s: float = 5.0,
        max_bytes: int = 256 << 20,
        keep: int = 4,
    ) -> None:
        self._path = Path(path)
        head = {"format": FORMAT, "version": VERSION, "start_unix_s": time.time(), **(header or {})}
        self._head = msgspec.json.encode(head) + b"\n"
        self._flush_lines, self._flush_s = flush_lines, flush_s
        self._max_bytes, self._keep = max_bytes, keep
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._flushed_s = time.monotonic()
        self._size: int | None = None  # of the current part; None before its header is written
        self._warned = False
        self.lost_lines = 0

    def write(self, request: ServedRequest) -> None:
        """Take one request; it reaches the file with the next flush."""
        try:
            self._lines.append(self._encoder.encode(request) + b"\n")
        except Exception as error:
            self._lose(1, error)
            return
        if len(self._lines) >= self._flush_lines or time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; what the disk refuses is lost and counted."""
        lines, self._lines = self._lines, []
        self._flushed_s = time.monotonic()
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
        if self._size is None or self._size >= self._max_bytes:
            self._rotate()
            data = self._head + data
        with self._path.open("ab") as file:
            file.write(data)
        self._size = (self._size or 0) + len(data)

    def _rotate(self) -> None:
        """Begin a new part; the one of an earlier run counts as an older part."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            for number in range(self._keep, 0, -1):
                older = self._path if number == 1 else self._part(number - 1)
                if older.exists():
                    os.replace(older, self._part(number))
        self._size = None

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _lose(self, lines: int, error: Exception) -> None:
        self.lost_lines += lines
        if not self._warned:
            self._warned = True
            _log.warning("slo-opt: the decision log %s loses lines: %s", self._path, error)
