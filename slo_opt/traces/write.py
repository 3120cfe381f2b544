"""Write a native trace: whole or not at all."""

import gzip
import os
import sys
import tempfile
from pathlib import Path

from slo_opt.traces.formats import native
from slo_opt.traces.trace import Trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write ``trace.json``, gzip if the name ends in ``.gz``, standard output for ``-``.

    Equal traces give equal bytes. A failure leaves an existing file as it was, and no partial one.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written to.
    """
    data = native.encode(trace)
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".slo-opt-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
