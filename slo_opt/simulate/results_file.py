"""Finished units of a sweep in a file, one JSON object a line: what an interruption cannot take away."""

import contextlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.simulate.tasks import Task

SCHEMA = "slo-opt-unit"


class ResultsFile:
    """Results by the key of their task; those of the file, and those to come, which are appended to it.

    Each line is on the disk before the next unit counts as finished. A line that was cut off while being written is
    dropped; units that other runs of slo-opt left in the file stay there. Only one process may write at a time.

    Parameters
    ----------
    path : Path or None
        The file, made if it is not there; None to keep the results in memory.
    must_exist : bool
        Refuse a path where there is no file.

    Raises
    ------
    InvalidInputError
        There is no such file, or another process writes to it.
    TraceFormatError
        A line is no result of a sweep.
    """

    def __init__(self, path: Path | None, *, must_exist: bool = False) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        if must_exist and not path.is_file():
            raise InvalidInputError(f"{path}: there is no such file to go on with; leave --resume out to begin it")
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"{path}: finished runs are appended to a file; name one")
        self._file = path.open("ab+")
        try:
            _lock(self._file, path)
            self._file.truncate(self._load(path))
        except BaseException:
            self._file.close()
            raise

    def _load(self, path: Path) -> int:
        """Read what is there; bytes of whole lines."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                record = json.loads(line)
                if record["schema"] != SCHEMA:
                    raise ValueError
                self.results[record["key"]] = record["result"]
            except (ValueError, KeyError, TypeError):
                raise TraceFormatError(
                    str(path),
                    f"line {number}",
                    "is no result of a sweep of slo-opt; nothing was written to it",
                    "Remove the line, or name another file.",
                ) from None
        return whole

    def add(self, task: Task, result: dict[str, Any], wall_s: float) -> None:
        """Keep the result of a task."""
        self.results[task.key] = result
        if self._file is None:
            return
        record = {
            "schema": SCHEMA,
            "key": task.key,
            "version": version("slo-opt"),
            "call": task.call,
            "inputs": task.inputs,
            "result": result,
            "wall_s": round(wall_s, 3),
        }
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        with contextlib.suppress(OSError):  # a device that cannot sync has taken the bytes all the same
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write to the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this platform
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InvalidInputError(f"{path}: another run is writing to it; wait for it, or name another file") from None
