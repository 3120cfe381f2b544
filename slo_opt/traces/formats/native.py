"""The native ``trace.json``: read strictly, written deterministically. See docs/trace-format.md."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import ENGINES
from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.request import Prefix, Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.traces.engine_file import EngineFields, PieceFields, Strict, changed_fields, engine_fields, engine_of
from slo_opt.traces.json_file import invalid, malformed, missing_field, place_of
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.rows import Scalar
from slo_opt.traces.source import Source
from slo_opt.traces.trace import Trace, ordering_problem
from slo_opt.traces.transforms import by_arrival

FORMAT = "slo-opt-trace"
VERSION: Literal[1] = 1
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class SloFields(Strict, frozen=True):
    """An SLO class."""

    name: str
    tpot_ms: float
    ttft_ms: float | None = None
    ttft_slowdown: float | None = None
    weight: float = 1.0
    best_effort: bool = False


class StageFields(Strict, frozen=True):
    """A stage of a request."""

    prompt_tokens: int
    output_tokens: int
    slo: str
    cached_tokens: int = 0
    pause_s: float = 0.0


class PrefixFields(Strict, frozen=True):
    """Leading blocks of a prompt."""

    block_tokens: int
    blocks: tuple[int, ...]


class RequestFields(Strict, frozen=True):
    """A request: either one stage in short form, or `stages`."""

    id: str
    arrival_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    slo: str | None = None
    cached_tokens: int | None = None
    stages: tuple[StageFields, ...] | None = None
    prefix: PrefixFields | None = None


class TraceFields(Strict, frozen=True):
    """The whole file."""

    format: Literal["slo-opt-trace"]
    version: Literal[1]
    name: _Name
    slo_classes: tuple[SloFields, ...]
    requests: tuple[RequestFields, ...]
    score_rule: str = ScoreRule.DSLO.value
    engine: str | EngineFields | None = None
    provenance: dict[str, Scalar] = msgspec.field(default_factory=dict)


_TOP_FIELDS = [field.encode_name for field in msgspec.structs.fields(TraceFields)]
_ALL_FIELDS = sorted(
    {
        field.encode_name
        for struct in (TraceFields, RequestFields, StageFields, PrefixFields, SloFields, EngineFields, PieceFields)
        for field in msgspec.structs.fields(struct)
    }
)


def read(source: Source, *, sort: bool = False) -> Trace:
    """A native trace.

    Parameters
    ----------
    source : Source
        The file.
    sort : bool
        Sort the requests by arrival instead of refusing unsorted ones.

    Raises
    ------
    TraceFormatError
        With the line of a syntax error, or the JSON pointer of a wrong value.
    """
    fields = _decode(source)
    classes: dict[str, SloClass] = {}
    for k, slo in enumerate(fields.slo_classes):
        if slo.name in classes:
            raise source.error(f"$.slo_classes[{k}].name", f"SLO class {slo.name!r} is defined twice", "Rename one.")
        classes[slo.name] = _built(source, f"$.slo_classes[{k}]", SloClass, slo)
    if fields.score_rule not in list(ScoreRule):
        raise source.error(
            "$.score_rule",
            f"unknown score rule {fields.score_rule!r}; expected one of {', '.join(ScoreRule)}",
            f"{did_you_mean(fields.score_rule, ScoreRule)}Correct it.",
        )
    requests = tuple(_request(source, k, request, classes) for k, request in enumerate(fields.requests))
    if not requests:
        raise source.error("$.requests", "is empty; expected at least one request", "Add requests.")
    if sort:
        requests = by_arrival(requests)
    if (problem := ordering_problem(requests)) is not None:
        raise source.error(f"$.requests[{problem[0]}]", problem[1], problem[2])
    engine = _engine(source, fields.engine)
    try:
        return Trace(fields.name, requests, classes, engine, ScoreRule(fields.score_rule), fields.provenance)
    except InvalidInputError as error:
        raise source.error("$.provenance", str(error), "Correct the value.") from None


def encode(trace: Trace) -> bytes:
    """The trace as JSON, one request a line, defaults left out; the same trace gives the same bytes."""
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "name": trace.name}
    if trace.engine is not None:
        head["engine"] = trace.engine if isinstance(trace.engine, str) else engine_fields(trace.engine)
    head["score_rule"] = trace.score_rule.value
    if trace.provenance:
        head["provenance"] = dict(trace.provenance)
    lines = [f" {_json(key)}: {_json(value)}," for key, value in head.items()]
    classes = [changed_fields(slo, SloFields) for slo in trace.slo_classes.values()]
    lines.append(f' "slo_classes": [\n{_list(classes)}\n ],')
    lines.append(f' "requests": [\n{_list([_request_fields(request) for request in trace.requests])}\n ]')
    return ("{\n" + "\n".join(lines) + "\n}\n").encode()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _list(items: Sequence[dict[str, Any]]) -> str:
    return ",\n".join(f"  {_json(item)}" for item in items)


def _request_fields(request: Request) -> dict[str, Any]:
    head = {"id": request.id, "arrival_s": float(request.arrival_s)}
    tail = {} if request.prefix is None else {"prefix": changed_fields(request.prefix, PrefixFields)}
    stages = [changed_fields(stage, StageFields) for stage in request.stages]
    if len(stages) == 1 and "pause_s" not in stages[0]:
        return {**head, **stages[0], **tail}
    return {**head, "stages": stages, **tail}


def _decode(source: Source) -> TraceFields:
    try:
        return msgspec.json.decode(source.text, type=TraceFields)
    except msgspec.ValidationError as error:
        raise _invalid(source, str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(source, str(error)) from None


def _invalid(source: Source, message: str) -> TraceFormatError:
    """A wrong value, placed by JSON pointer."""
    what, place = place_of(message)
    if place == "$" and missing_field(what) in ("format", "version"):
        remedy = f'A native trace starts with "format": "{FORMAT}", "version": {VERSION}; else use --input-format.'
        return source.error(place, f"required field {missing_field(what)!r} is missing", remedy)
    if place == "$.version":
        return source.error(place, f"unknown version; expected {VERSION}", "Update slo-opt or rewrite the trace.")
    if place == "$.format" and '"slo-opt-plan"' in source.text[:200]:
        return source.error(place, "this is a plan, not a trace", "Ask it with: slo-opt explain.")
    if place == "$.format":
        return source.error(place, f"expected {FORMAT!r}", "Correct it, or name the format with --input-format.")
    return invalid(source, message, _TOP_FIELDS if place == "$" else _ALL_FIELDS, "docs/trace-format.md")


def _built(source: Source, place: str, kind: Any, fields: msgspec.Struct) -> Any:
    """A domain object from checked fields; what it refuses becomes an error at `place`."""
    try:
        return kind(**{name: getattr(fields, name) for name in fields.__struct_fields__})
    except InvalidInputError as error:
        raise source.error(place, str(error), "Correct the value.") from None


def _request(source: Source, index: int, fields: RequestFields, classes: dict[str, SloClass]) -> Request:
    place = f"$.requests[{index}]"
    short = {
        name: value
        for name in ("prompt_tokens", "output_tokens", "slo", "cached_tokens")
        if (value := getattr(fields, name)) is not None
    }
    if fields.stages is not None:
        if short:
            raise source.error(
                place, f"has stages and also {next(iter(short))!r}", "Give either stages or the short form, not both."
            )
        places = [f"{place}.stages[{k}]" for k in range(len(fields.stages))]
        stages = tuple(_built(source, where, Stage, stage) for where, stage in zip(places, fields.stages, strict=True))
    else:
        for name in ("prompt_tokens", "output_tokens", "slo"):
            if name not in short:
                raise source.error(
                    place, f"required field {name!r} is missing", "Add it, or describe the request by stages."
                )
        places = [place]
        try:
            stages = (Stage(**short),)
        except InvalidInputError as error:
            raise source.error(place, str(error), "Correct the value.") from None
    for where, stage in zip(places, stages, strict=True):
        if stage.slo not in classes:
            raise source.error(
                f"{where}.slo",
                f"SLO class {stage.slo!r} is not defined; defined: {', '.join(sorted(classes)) or 'none'}",
                f"{did_you_mean(stage.slo, classes)}Define it in slo_classes or correct the name.",
            )
    prefix = None if fields.prefix is None else _built(source, f"{place}.prefix", Prefix, fields.prefix)
    try:
        return Request(fields.id, fields.arrival_s, stages, prefix)
    except InvalidInputError as error:
        raise source.error(place, str(error), "Correct the value.") from None


def _engine(source: Source, engine: str | EngineFields | None) -> str | EngineModel | None:
    if engine is None:
        return None
    if isinstance(engine, str):
        if engine not in ENGINES:
            raise source.error(
                "$.engine",
                f"unknown engine {engine!r}; built-in engines: {', '.join(ENGINES)}",
                f"{did_you_mean(engine, ENGINES)}Correct the name or describe the engine inline.",
            )
        return engine
    try:
        return engine_of(engine)
    except InvalidInputError as error:
        raise source.error("$.engine", str(error), "Correct the value.") from None
