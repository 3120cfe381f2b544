"""Write a native trace: whole or not at all."""

from pathlib import Path

from slo_opt.traces.atomic import write_bytes
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
    write_bytes(Path(path), native.encode(trace))
