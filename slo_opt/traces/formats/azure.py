"""Azure LLM inference traces of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

References
----------
Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024;
https://github.com/Azure/AzurePublicDataset (CC-BY-4.0).
"""

import re
from datetime import UTC, datetime

import msgspec

from slo_opt.traces.formats.tables import Count, csv_rows
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.source import Source

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


class Columns(
    msgspec.Struct, rename={"timestamp": "TIMESTAMP", "prompt": "ContextTokens", "output": "GeneratedTokens"}
):
    """Columns as published."""

    timestamp: str
    prompt: Count
    output: Count


def read(source: Source) -> RawTrace:
    """Rows of an Azure trace; arrivals are relative to the earliest row.

    Rows without context or generated tokens are no work that a schedule can do: they are dropped and counted.
    """
    kept: list[tuple[int, int, Columns]] = []
    dropped = 0
    earliest_ns: int | None = None
    for line, row in csv_rows(source, Columns):
        stamp_ns = _nanoseconds(source, line, row.timestamp)
        earliest_ns = stamp_ns if earliest_ns is None else min(earliest_ns, stamp_ns)
        if row.prompt and row.output:
            kept.append((line, stamp_ns, row))
        else:
            dropped += 1
    rows = tuple(
        Row(str(number), (stamp_ns - (earliest_ns or 0)) / 1e9, row.prompt, row.output, line=line)
        for number, (line, stamp_ns, row) in enumerate(kept)
    )
    return RawTrace(source.path, source.name, rows, {"format": "azure", "dropped_without_tokens": dropped})


def _nanoseconds(source: Source, line: int, text: str) -> int:
    """Nanoseconds since 1970; a time without a zone is taken as UTC."""
    match = _STAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        day, clock, fraction, zone = match.groups()
        moment = datetime.fromisoformat(f"{day}T{clock}{zone or ''}")
        if zone is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
    except (ValueError, OverflowError, OSError):
        raise source.error(
            line,
            f"column 'TIMESTAMP': expected a time such as 2023-11-16 18:17:03.9799600, found {text[:60]!r}",
            "Correct it or remove the line.",
        ) from None
