"""BurstGPT traces: ``Timestamp`` (s), ``Request tokens``, ``Response tokens`` and columns that are not used here.

Version 1 lacks ``Session ID`` and ``Elapsed time``; both versions are read alike.

References
----------
Wang et al., "BurstGPT: A real-world workload dataset to optimize LLM serving systems", arXiv 2401.17644.
"""

import msgspec

from slo_opt.traces.formats.tables import Count, Seconds, csv_rows
from slo_opt.traces.rows import RawTrace, Row, Scalar
from slo_opt.traces.source import Source


class Columns(
    msgspec.Struct,
    rename={
        "timestamp_s": "Timestamp",
        "prompt": "Request tokens",
        "output": "Response tokens",
        "session": "Session ID",
        "elapsed": "Elapsed time",
        "total": "Total tokens",
        "model": "Model",
        "log": "Log Type",
    },
):
    """Columns as published, the unused ones as text."""

    timestamp_s: Seconds
    prompt: Count
    output: Count
    session: str = ""
    elapsed: str = ""
    total: str = ""
    model: str = ""
    log: str = ""


def read(source: Source) -> RawTrace:
    """Rows of a BurstGPT trace; failed requests have 0 response tokens and are dropped and counted."""
    rows: list[Row] = []
    failed = empty = 0
    for line, row in csv_rows(source, Columns):
        if row.output == 0:
            failed += 1
        elif row.prompt == 0:
            empty += 1
        else:
            rows.append(Row(str(len(rows)), row.timestamp_s, row.prompt, row.output, line=line))
    facts: dict[str, Scalar] = {"format": "burstgpt", "dropped_failures": failed, "dropped_without_tokens": empty}
    return RawTrace(source.path, source.name, tuple(rows), facts)
