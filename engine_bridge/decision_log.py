"""The decision log: one line of JSON for each request at its end, for comparing a day's traffic with its optimum.

Read it with any command that takes a trace: `slo_opt.traces.formats.decision_log` has the reader.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from slo_opt.engine_bridge.line_log import LineLog
from slo_opt.traces.formats.decision_log import FORMAT, VERSION

_log = logging.getLogger(__name__)
_CLOSING_S = 5.0


class ServedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request, as it was served. No prompt, no token ids.

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
    ttft_slowdown : float or None
        Where its TTFT limit is a multiple of the time on an idle engine: the multiple. `ttft_limit_ms` is then what
        that came to.
    thinking_tokens : int or None
        Output tokens of its thinking phase.
    weight : float
        Value of attaining it.
    best_effort : bool
        Under no SLO from the start.
    outcome, reason : str
        ``admitted``, ``best_effort``, ``refused``, ``aborted`` or ``malformed``, and why.
    first_token_s, last_token_s : float or None
        Seconds after the arrival; None where no token came.
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
    ttft_slowdown: float | None = None
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
    """Appends served requests to a file, from a thread of its own: the engine waits for no disk.

    Nothing here raises. What the disk refuses, or cannot take as fast as it comes, is lost and counted. Files turn
    over as those of `LineLog` do.

    Parameters
    ----------
    path : Path
        The file.
    about : mapping, or callable that returns one
        For the header: ``engine`` (an EngineModel), ``vllm`` and anything else worth knowing. Asked again for the
        header lines that follow every `header_s` seconds and at the end: the engine model changes as it learns.
    on_loss : callable, optional
        Told how many lines were lost.
    flush_lines, flush_s : int, float
        Written once so many lines wait, and every so many seconds.
    header_s : float
        See `about`.
    max_waiting : int
        Lines kept in memory; further ones are lost.
    max_bytes, keep : int
        The size at which a file ends, and how many older ones stay.

    Attributes
    ----------
    lost_lines : int
        Lines that are not in the file.
    """

    def __init__(
        self,
        path: str | Path,
        about: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        *,
        on_loss: Callable[[int], None] | None = None,
        flush_lines: int = 64,
        flush_s: float = 2.0,
        header_s: float = 10.0,
        max_waiting: int = 10_000,
        max_bytes: int = 256 << 20,
        keep: int = 4,
    ) -> None:
        self._about = about if callable(about) else lambda: about or {}
        self._on_loss = on_loss
        self._start_unix_s = time.time()
        self._lines = LineLog(
            path,
            self._header(),
            "decision log",
            flush_lines=max_waiting + 1,  # it is this class that flushes
            flush_s=float("inf"),
            max_bytes=max_bytes,
            keep=keep,
        )
        self._flush_lines, self._flush_s = flush_lines, flush_s
        self._header_s, self._headed_s = header_s, time.monotonic()
        self._max_waiting = max_waiting
        self._waiting: deque[ServedRequest] = deque()
        self._wanted = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._reporting = threading.Lock()
        self._reported = 0
        self._dropped = 0

    @property
    def lost_lines(self) -> int:
        """Lines that are not in the file."""
        return self._lines.lost_lines + self._dropped

    def write(self, request: ServedRequest) -> None:
        """Take one request; it reaches the file a little later."""
        waiting = self._waiting
        if self._closed or len(waiting) >= self._max_waiting:
            self._dropped += 1
            self._report()
            return
        waiting.append(request)
        if self._thread is None:
            self._start()
        elif len(waiting) >= self._flush_lines:
            self._wanted.set()

    def flush(self) -> None:
        """Write what waits, now."""
        self._flush(last=False)

    def close(self) -> None:
        """Write the rest and a last header; afterwards nothing is taken."""
        if self._closed:
            return
        self._closed = True
        if self._thread is None:
            return
        atexit.unregister(self.close)
        self._wanted.set()
        self._thread.join(_CLOSING_S)
        if not self._thread.is_alive():  # else the disk hangs, which must not hold up the end
            self._flush(last=True)

    def _start(self) -> None:
        try:
            self._thread = threading.Thread(target=self._run, name="slo-opt decision log", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            _log.warning("slo-opt: no decision log: %s", error)
            self._closed = True

    def _run(self) -> None:
        while not self._closed:
            self._wanted.wait(self._flush_s)
            self._wanted.clear()
            self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        with self._writing:
            count = len(self._waiting)
            for _ in range(count):
                self._lines.write(self._waiting.popleft())
            now_s = time.monotonic()
            if last or (count and now_s - self._headed_s >= self._header_s):
                self._headed_s = now_s
                self._lines.write(self._header())
            self._lines.flush()
        self._report()

    def _header(self) -> dict[str, Any]:
        try:
            about = dict(self._about())
        except Exception as error:  # what it describes may be in the middle of a change
            about = {"error": repr(error)}
        return {"format": FORMAT, "version": VERSION, "start_unix_s": self._start_unix_s, **about}

    def _report(self) -> None:
        if self._on_loss is None or self.lost_lines == self._reported:
            return
        with self._reporting, suppress(Exception):
            more, self._reported = self.lost_lines - self._reported, self.lost_lines
            if more > 0:
                self._on_loss(more)
