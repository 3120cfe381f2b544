"""Where the requests of a result came from."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the requests came from, as asked for on the command line.

    Parameters
    ----------
    path : str
        The trace file, or ``-``.
    scenario : str or None
        SLO assignment, where the file names no SLOs.
    window : tuple of float or None
        Seconds of the trace that were taken.
    scale : float
        Factor on the arrival rate.
    read, dropped : int
        Requests read; those of them that were left out, and are not in `offered`.
    provenance : dict
        What the trace says of itself.
    """

    path: str
    scenario: str | None
    window: tuple[float, float] | None
    scale: float
    read: int
    dropped: int
    provenance: dict[str, Any] = field(default_factory=dict)
