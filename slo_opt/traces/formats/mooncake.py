"""Mooncake traces: JSONL with ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``.

References
----------
Qin et al., "Mooncake: Trading more storage for less computation", FAST 2025; https://github.com/kvcache-ai/Mooncake
(Apache-2.0). A hash id stands for a block of 512 prompt tokens together with everything before it.
"""

from typing import Annotated

import msgspec

from slo_opt.domain.request import Prefix
from slo_opt.traces.formats.tables import Count, jsonl_rows
from slo_opt.traces.rows import RawTrace, Row, Scalar
from slo_opt.traces.source import Source

BLOCK_TOKENS = 512


class Columns(msgspec.Struct):
    """Fields as published."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    input_length: Count
    output_length: Count
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0)]] = []


def read(source: Source, *, prefix_cache: bool = False) -> RawTrace:
    """Rows of a Mooncake trace.

    Parameters
    ----------
    source : Source
        The file.
    prefix_cache : bool
        Whether an infinite prefix cache serves the leading blocks that an earlier row also had. At least one prompt
        token is always computed. If not, the rows keep the ids of their whole blocks.
    """
    rows: list[Row] = []
    seen: set[int] = set()
    dropped = 0
    for line, row in jsonl_rows(source, Columns):
        if not (row.input_length and row.output_length):
            dropped += 1
            continue
        cached = 0
        if prefix_cache:
            hits = next((k for k, block in enumerate(row.hash_ids) if block not in seen), len(row.hash_ids))
            cached = min(hits * BLOCK_TOKENS, row.input_length - 1)
            seen.update(row.hash_ids)
        prompt = row.input_length - cached
        arrival_s = row.timestamp / 1000
        whole = () if prefix_cache else tuple(row.hash_ids[: row.input_length // BLOCK_TOKENS])
        rows.append(
            Row(
                str(len(rows)),
                arrival_s,
                prompt,
                row.output_length,
                cached_tokens=cached,
                line=line,
                prefix=Prefix(BLOCK_TOKENS, whole) if whole else None,
            )
        )
    facts: dict[str, Scalar] = {"format": "mooncake", "prefix_cache": prefix_cache, "dropped_without_tokens": dropped}
    return RawTrace(source.path, source.name, tuple(rows), facts)
