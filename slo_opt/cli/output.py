"""Writing results: whole or not at all, `-` for stdout."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from slo_opt.domain.errors import InvalidInputError


def check_writable(path: Path) -> None:
    """Refuse a path whose folder does not exist, before an hour of work is spent.

    Raises
    ------
    InvalidInputError
        The folder is missing, or the path is a folder.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path}: the folder {path.parent} does not exist; create it first")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a failure leaves no partial file."""
    # The ending stays: matplotlib and gzip choose the format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".slo-opt-", suffix="".join(path.suffixes))
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or stdout if `path` is ``-``."""
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_atomic(path, lambda temporary: _fill(temporary, data))


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)
