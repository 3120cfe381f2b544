"""Bailian traces, the JSONL of vLLM's ``timed-trace`` benchmark data set: ``chat_id``, ``timestamp`` (s), lengths.

References
----------
https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon. Each row holds its whole context, so a later turn of a
chat is a request of its own; ``parent_chat_id`` is -1 for the first turn.
"""

import msgspec

from slo_opt.traces.formats.tables import Count, Seconds, jsonl_rows
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.source import Source


class Columns(msgspec.Struct):
    """Fields as published."""

    chat_id: int | str
    timestamp: Seconds
    input_length: Count
    output_length: Count
    parent_chat_id: int | str = -1


def read(source: Source) -> RawTrace:
    """Rows of a Bailian trace; ids are the chat ids."""
    rows: list[Row] = []
    dropped = 0
    for line, row in jsonl_rows(source, Columns):
        if row.input_length and row.output_length and row.chat_id != "":
            rows.append(Row(str(row.chat_id), row.timestamp, row.input_length, row.output_length, line=line))
        else:
            dropped += 1
    return RawTrace(source.path, source.name, tuple(rows), {"format": "bailian", "dropped_without_tokens": dropped})
