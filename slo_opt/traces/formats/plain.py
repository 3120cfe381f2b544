"""Plain CSV and JSONL: ``arrival_s,prompt_tokens,output_tokens``, if wanted id, slo, reason_ratio, cached_tokens."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from slo_opt.traces.formats.tables import Count, PositiveCount, Seconds, csv_rows, jsonl_rows
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.source import Source


class Columns(msgspec.Struct):
    """Columns; `prompt_tokens` leaves out what the prefix cache holds."""

    arrival_s: Seconds
    prompt_tokens: PositiveCount
    output_tokens: PositiveCount
    id: str | None = None
    slo: str | None = None
    reason_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    cached_tokens: Count = 0


def read_csv(source: Source) -> RawTrace:
    """Rows of a plain CSV file."""
    return _raw(source, "csv", csv_rows(source, Columns))


def read_jsonl(source: Source) -> RawTrace:
    """Rows of a plain JSONL file."""
    return _raw(source, "jsonl", jsonl_rows(source, Columns))


def _raw(source: Source, name: str, lines: Iterator[tuple[int, Columns]]) -> RawTrace:
    rows = tuple(
        Row(
            id=str(number) if row.id is None else row.id,
            arrival_s=row.arrival_s,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            cached_tokens=row.cached_tokens,
            slo=row.slo,
            reason_ratio=row.reason_ratio,
            line=line,
        )
        for number, (line, row) in enumerate(lines)
    )
    return RawTrace(source.path, source.name, rows, {"format": name})
