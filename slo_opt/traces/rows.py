"""Raw rows: what every published trace has (arrival, prompt, output) before SLOs are assigned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slo_opt.domain.request import Prefix

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a raw trace.

    Parameters
    ----------
    id : str
        Unique within the trace.
    arrival_s : float
        Seconds from the start of the trace.
    prompt_tokens, output_tokens : int
        Tokens to prefill (less `cached_tokens`) and to produce, both >= 1.
    cached_tokens : int
        Tokens of the prompt that the prefix cache holds.
    slo : str or None
        The part of the scenario that the row belongs to, where the file says so.
    reason_ratio : float or None
        Share of the output spent on thinking, where the file says so.
    line : int
        Line in the file, for messages.
    prefix : Prefix or None
        What the prompt begins with, where the file says so.
    """

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    slo: str | None = None
    reason_ratio: float | None = None
    line: int = 0
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class RawTrace:
    """Rows of one file or generator, with where they come from.

    Parameters
    ----------
    path : str
        File, for messages.
    name : str
        For reports.
    rows : tuple of Row
        In the order of the file.
    provenance : mapping
        Source, format, counts of dropped rows and the like.
    """

    path: str
    name: str
    rows: tuple[Row, ...]
    provenance: Mapping[str, Scalar] = field(default_factory=dict)
