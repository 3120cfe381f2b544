"""Which format a file is in, told by its content."""

import csv
import re
from enum import StrEnum

from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.formats.decision_log import FORMAT as DECISIONS
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.source import Source


class TraceFormat(StrEnum):
    """Formats that can be read."""

    NATIVE = "native"
    AZURE = "azure"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    BAILIAN = "bailian"
    CSV = "csv"
    JSONL = "jsonl"
    DECISION_LOG = "decision-log"


_KEY = re.compile(r'"(\w+)"\s*:')
_ALIASES = {"timed-trace": TraceFormat.BAILIAN, "trace.json": TraceFormat.NATIVE, "json": TraceFormat.NATIVE}


def format_named(name: str) -> TraceFormat:
    """The format of that name; ``timed-trace`` is ``bailian``.

    Raises
    ------
    InvalidInputError
        No such format; the message suggests the nearest name.
    """
    if name in _ALIASES:
        return _ALIASES[name]
    try:
        return TraceFormat(name)
    except ValueError:
        known = [*TraceFormat, *_ALIASES]
        raise InvalidInputError(
            f"unknown input format {name!r}. {did_you_mean(name, known)}Formats: {', '.join(TraceFormat)}"
        ) from None


def detect(source: Source) -> TraceFormat:
    """The format of a file, by its first line.

    Raises
    ------
    TraceFormatError
        The content resembles no known format.
    """
    first = source.first_line().strip()
    if first.startswith(("{", "[")):
        return _detect_json(source, first)
    try:
        names = {name.strip() for name in next(csv.reader([first]), [])}
    except csv.Error:
        names = set()
    if names & {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}:
        return TraceFormat.AZURE
    if names & {"Request tokens", "Response tokens"}:
        return TraceFormat.BURSTGPT
    if names & {"arrival_s", "prompt_tokens", "output_tokens"}:
        return TraceFormat.CSV
    raise source.error(
        "line 1",
        f"resembles no known trace format: {first[:60]!r}; expected trace.json, JSONL or CSV with a header",
        f"Name the format (--input-format {'|'.join(TraceFormat)}).",
    )


def _detect_json(source: Source, first: str) -> TraceFormat:
    keys = set(_KEY.findall(first))
    if "arrival_unix_s" in keys or ("format" in keys and DECISIONS in first):
        return TraceFormat.DECISION_LOG
    if "format" not in keys and "requests" not in keys:
        if "chat_id" in keys:
            return TraceFormat.BAILIAN
        if "hash_ids" in keys:
            return TraceFormat.MOONCAKE
        if keys & {"arrival_s", "prompt_tokens"}:
            return TraceFormat.JSONL
        if "timestamp" in keys:
            raise source.error(
                "line 1",
                "has a timestamp but neither hash_ids (Mooncake, milliseconds) nor chat_id (Bailian, seconds)",
                "Name the format, so that the unit is known: --input-format mooncake or bailian.",
            )
    return TraceFormat.NATIVE
