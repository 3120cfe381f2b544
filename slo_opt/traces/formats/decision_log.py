"""The decision log of the live scheduler: JSONL, a header, then one line for each request at its end.

What was served becomes a trace, SLOs included; how it fared stays beside it, for a comparison with the optimum.
"""

import json
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import MAX_LIMIT_MS, SloClass
from slo_opt.traces.best_effort import BEST_EFFORT
from slo_opt.traces.engine_file import EngineFields, engine_of
from slo_opt.traces.formats.tables import Count, PositiveCount, in_words, jsonl_rows
from slo_opt.traces.json_file import missing_field, place_of
from slo_opt.traces.rows import Scalar
from slo_opt.traces.source import Source
from slo_opt.traces.trace import Trace

FORMAT = "slo-opt-decisions"
VERSION = 1
OUTCOME = ("live_offered", "live_attained", "live_value")  # in a provenance: how the requests fared
_ARRIVAL = '"arrival_unix_s"'

Limit = Annotated[float, msgspec.Meta(gt=0)] | None
After = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)] | None


class Columns(msgspec.Struct):
    """Fields of a line; `ServedRequest` of the live scheduler says what they mean."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    arrival_unix_s: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    prompt_tokens: PositiveCount
    cached_tokens: Count = 0
    output_tokens: Count = 0
    slo: Annotated[str, msgspec.Meta(min_length=1)] = "default"
    ttft_limit_ms: Limit = None
    ttft_slowdown: Annotated[float, msgspec.Meta(ge=1, le=1e6)] | None = None
    tpot_ms: Limit = None
    thinking_tpot_ms: Limit = None
    thinking_tokens: Count | None = None
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    best_effort: bool = False
    outcome: Literal["admitted", "best_effort", "refused", "aborted", "malformed"] = "admitted"
    reason: str = ""
    first_token_s: After = None
    last_token_s: After = None
    lateness_s: After = None
    attained: bool | None = None
    preemptions: Count = 0


class _Header(msgspec.Struct):
    """A header line; its other fields are for people."""

    format: str
    version: int
    engine: EngineFields | None = None
    vllm: str | None = None
    policy: str | None = None


def without_outcome(provenance: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A provenance without how the requests fared live: for other requests, or other SLOs."""
    return {key: value for key, value in provenance.items() if key not in OUTCOME}


@dataclass(frozen=True, slots=True)
class ServedTrace:
    """A trace, and how its requests fared when they were served.

    Parameters
    ----------
    trace : Trace
        What was asked for.
    attained : frozenset of str
        Requests under an SLO whose every token was on time.
    """

    trace: Trace
    attained: frozenset[str]

    def outcome(self, requests: Iterable[Request]) -> dict[str, Scalar]:
        """How some of the requests fared, for a provenance: offered, attained, and their value."""
        classes = self.trace.slo_classes
        offered = [
            (request.id, slo.weight) for request in requests if not (slo := classes[request.stages[-1].slo]).best_effort
        ]
        weights = [weight for id, weight in offered if id in self.attained]
        return dict(zip(OUTCOME, (len(offered), len(weights), sum(weights)), strict=True))


def read(source: Source) -> ServedTrace:
    """The requests of a decision log, by arrival.

    Left out and counted: malformed ones, those that left before their first token, and a last line that was cut
    short. A request that was aborted later counts with the tokens it got. One that was refused has no output length:
    it gets the median of its class.

    Raises
    ------
    TraceFormatError
        With the line.
    """
    text, engine, facts = _without_headers(source)
    kept: list[tuple[int, Columns]] = []
    dropped: Counter[str] = Counter()
    for line, row in jsonl_rows(Source(source.path, text), Columns):
        _check(source, line, row)
        reason = _why_dropped(row)
        if reason is None:
            kept.append((line, row))
        else:
            dropped[reason] += 1
    rows, assumed, without_length = _with_lengths([row for _, row in _unique(source, kept)])
    if without_length:
        dropped["dropped_without_length"] = without_length
    if not rows:
        raise source.error(
            "file", "holds no request with tokens; expected at least one that was served", "Give a longer log."
        )
    rows.sort(key=lambda row: row.arrival_unix_s)
    start_s = rows[0].arrival_unix_s
    names = _class_names(rows)
    classes: dict[str, SloClass] = {}
    responses = set(names.values())
    requests = tuple(_request(row, start_s, names, responses, classes) for row in rows)
    if assumed:
        facts["assumed_lengths"] = assumed
    trace = Trace(source.name, requests, classes, engine, provenance={**facts, **dropped, "rows": len(rows)})
    return ServedTrace(trace, frozenset(row.id for row in rows if _on_time(row)))


def _without_headers(source: Source) -> tuple[str, EngineModel | None, dict[str, Scalar]]:
    """The text with header lines blanked, so that lines keep their numbers; what the headers say, the last one wins."""
    lines = source.text.split("\n")
    engine: EngineModel | None = None
    facts: dict[str, Scalar] = {"format": "decision-log"}
    for index, text in enumerate(lines):
        if text.strip() and index == len(lines) - 1 and not _is_json(text):
            warnings.warn(f"{source.path}: line {index + 1} is cut short and left out", stacklevel=2)
            facts["dropped_cut_short"] = 1
            lines[index] = ""
        elif '"format"' in text and _ARRIVAL not in text:
            header = _header(source, index + 1, text)
            lines[index] = ""
            if header.engine is not None:
                try:
                    engine = engine_of(header.engine)
                except InvalidInputError as error:
                    raise source.error(
                        index + 1, f"engine: {error}", "Correct the engine, or remove it and give --engine."
                    ) from None
            facts |= {key: value for key in ("vllm", "policy") if (value := getattr(header, key)) is not None}
    return "\n".join(lines), engine, facts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _header(source: Source, line: int, text: str) -> _Header:
    wanted = f'A header is {{"format": "{FORMAT}", "version": {VERSION}, ...}}; remove the line or correct it.'
    try:
        header = msgspec.json.decode(text, type=_Header)
    except msgspec.ValidationError as error:
        what, place = place_of(str(error))
        field = missing_field(what)
        problem = f"field {field!r} is missing" if field is not None else in_words(what)
        raise source.error(line, f"{place.removeprefix('$.')}: {problem}", wanted) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise source.error(line, f"is not JSON ({error}); expected a header", wanted) from None
    if header.format != FORMAT:
        raise source.error(line, f"is the header of something else: {header.format!r}", wanted)
    if header.version != VERSION:
        raise source.error(line, f"unknown version {header.version}; expected {VERSION}", "Update slo-opt.")
    return header


def _check(source: Source, line: int, row: Columns) -> None:
    """What the columns must be to one another."""
    if row.cached_tokens >= row.prompt_tokens:
        raise source.error(
            line,
            f"cached_tokens is {row.cached_tokens} of {row.prompt_tokens} prompt_tokens; at least one is computed",
            "Correct it or remove the line.",
        )
    limits_needed = not row.best_effort and row.outcome != "malformed"
    for name in ("ttft_limit_ms", "tpot_ms"):
        if limits_needed and getattr(row, name) is None and not (name == "ttft_limit_ms" and row.ttft_slowdown):
            raise source.error(
                line, f"column {name!r} is missing in a request under an SLO", "Add it, or mark it best_effort."
            )


def _why_dropped(row: Columns) -> str | None:
    if row.outcome == "malformed":
        return "dropped_malformed"
    if row.outcome == "aborted" and not row.output_tokens:
        return "dropped_aborted_without_token"
    return None


def _unique(source: Source, rows: list[tuple[int, Columns]]) -> list[tuple[int, Columns]]:
    seen: dict[str, int] = {}
    for line, row in rows:
        first = seen.setdefault(row.id, line)
        if first != line:
            raise source.error(
                line, f"id {row.id!r} is that of line {first} too; ids must be unique", "Give the log of one server."
            )
    return rows


def _with_lengths(rows: list[Columns]) -> tuple[list[Columns], int, int]:
    """Rows with an output length each; how many were assumed, and how many have none at all."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        if row.output_tokens and row.outcome != "aborted":
            lengths.setdefault(row.slo, []).append(row.output_tokens)
    everything = [length for group in lengths.values() for length in group]
    found: list[Columns] = []
    assumed = without = 0
    for row in rows:
        if row.output_tokens:
            found.append(row)
        elif everything:
            assumed += 1
            length = int(statistics.median_low(lengths.get(row.slo, everything)))
            found.append(msgspec.structs.replace(row, output_tokens=length, attained=False))
        else:
            without += 1
    return found, assumed, without


def _on_time(row: Columns) -> bool:
    """Whether it was under an SLO and every token it got came in time."""
    if row.best_effort:
        return False
    if row.attained is not None and row.outcome != "aborted":
        return row.attained
    return row.lateness_s is not None and row.lateness_s <= TIME_TOLERANCE_S


def _limit_ms(value: float | None, default: float | None) -> float:
    """A limit without the noise of clock arithmetic: whole microseconds, at most a day."""
    chosen = default if value is None else value
    assert chosen is not None
    return min(max(round(chosen, 3), 0.001), MAX_LIMIT_MS)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What tells two classes of one name apart."""

    ttft_ms: float | None
    ttft_slowdown: float | None
    tpot_ms: float
    weight: float
    best_effort: bool

    @classmethod
    def of(cls, row: Columns) -> "_Limits":
        slowdown = None if row.best_effort else row.ttft_slowdown
        return cls(
            None if slowdown is not None else _limit_ms(row.ttft_limit_ms, BEST_EFFORT.ttft_ms),
            slowdown,
            _limit_ms(row.tpot_ms, BEST_EFFORT.tpot_ms),
            row.weight,
            row.best_effort,
        )

    def text(self, with_weight: bool) -> str:
        """Behind the name of the class."""
        ttft = f"{self.ttft_ms:.11g}" if self.ttft_slowdown is None else f"{self.ttft_slowdown!r}x"
        text = f"{' best effort' if self.best_effort else ''} {ttft}/{self.tpot_ms:.11g} ms"
        return f"{text} x{self.weight!r}" if with_weight else text


Names = Mapping[tuple[str, _Limits], str]


def _class_names(rows: list[Columns]) -> Names:
    """A name for each set of limits: the one in the log where it has one set, else with the limits behind it."""
    sets: dict[str, dict[_Limits, None]] = {}
    for row in rows:
        sets.setdefault(row.slo, {})[_Limits.of(row)] = None
    names: dict[tuple[str, _Limits], str] = {}
    taken = set(sets)
    for slo, found in sets.items():
        weights = len({limits.weight for limits in found})
        for limits in found:
            name = slo
            if len(found) > 1:
                name += limits.text(weights > 1)
                while name in taken:
                    name += "'"
            taken.add(name)
            names[slo, limits] = name
    return names


def _request(row: Columns, start_s: float, names: Names, responses: Set[str], classes: dict[str, SloClass]) -> Request:
    limits = _Limits.of(row)
    name = names[row.slo, limits]
    response = SloClass(name, limits.tpot_ms, limits.ttft_ms, limits.ttft_slowdown, limits.weight, limits.best_effort)
    thinking_tokens = 0 if row.thinking_tpot_ms is None else min(row.thinking_tokens or 0, row.output_tokens)
    stages = []
    prompt_tokens, cached_tokens = row.prompt_tokens - row.cached_tokens, row.cached_tokens
    if thinking_tokens:
        thinking = replace(response, name=f"{name} thinking", tpot_ms=_limit_ms(row.thinking_tpot_ms, None))
        # Not the name of a response, nor of another limit on thinking.
        while thinking.name in responses or classes.setdefault(thinking.name, thinking) != thinking:
            thinking = replace(thinking, name=f"{thinking.name}'")
        stages.append(Stage(prompt_tokens, thinking_tokens, thinking.name, cached_tokens))
        prompt_tokens = cached_tokens = 0
    if row.output_tokens > thinking_tokens:
        classes[name] = response
        stages.append(Stage(prompt_tokens, row.output_tokens - thinking_tokens, name, cached_tokens))
    return Request(row.id, round(row.arrival_unix_s - start_s, 6), tuple(stages))
