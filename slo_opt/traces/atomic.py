"""Files written whole or not at all."""

import gzip
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # there is no such lock on Windows
    fcntl = None  # type: ignore[assignment]


def is_stdout(path: Path) -> bool:
    """Whether a path stands for standard output: to replace the file that it is redirected to would lose it."""
    return str(path) in ("-", "/dev/stdout")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then put it in the place of `path`: a failure leaves no partial file.

    Links are followed. What exists and is no regular file (a pipe, a device) is written to, not replaced.

    Raises
    ------
    OSError
        Folder or disk refuse; it names `path`, not the temporary file.
    """
    target = Path(os.path.realpath(path))
    special = path.exists() and not path.is_file()
    try:
        # The ending stays: matplotlib chooses the format by it.
        folder = None if special else target.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=".slo-opt-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if special:
                with temporary.open("rb") as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                umask = os.umask(0)
                os.umask(umask)
                temporary.chmod(0o666 & ~umask)
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, gzip if its name ends in ``.gz``; or stdout."""
    if is_stdout(path):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    packed = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    write_atomic(path, lambda temporary: _fill(temporary, packed))


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def append_line(path: Path, line: bytes) -> None:
    """Add one line to a file, gzip if its name ends in ``.gz``; or to stdout. Made if missing, whole or not at all.

    Several processes may append to one file.

    Raises
    ------
    OSError
        Folder or disk refuse; what the file held before is still there.
    """
    if is_stdout(path):
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        return
    packed = path.suffix == ".gz"
    data = gzip.compress(line + b"\n", mtime=0) if packed else line + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with _locked(handle):
                regular = stat.S_ISREG(os.fstat(handle).st_mode)
                before = os.fstat(handle).st_size if regular else 0
                if before and not packed and not _ends_a_line(path):
                    data = b"\n" + data
                _write_all(handle, data, before if regular else None)
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)  # closing the file ends it
    yield


def _write_all(handle: int, data: bytes, before: int | None) -> None:
    """Write everything, or cut a regular file back to the size `before`."""
    done = 0
    try:
        while done < len(data):
            done += os.write(handle, data[done:])
    except BaseException:
        if before is not None:
            os.ftruncate(handle, before)
        raise
