"""Engine models in files: the object that ``"engine"`` may hold in a trace.json, alone in a file of its own."""

from pathlib import Path
from typing import Any

import msgspec

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.json_file import invalid, malformed
from slo_opt.traces.source import Source, load

PAGE = "docs/calibrate.md"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unknown fields are errors: a misspelt one would be lost without a word."""


class PieceFields(Strict, frozen=True):
    """A roofline piece."""

    per_token_s: float
    base_s: float
    per_draft_step_s: float = 0.0


class EngineFields(Strict, frozen=True):
    """An engine; the defaults are those of `EngineModel`."""

    name: str
    source: str
    pieces: tuple[PieceFields, ...]
    decode_context_s: float = 0.0
    prefill_pair_s: float = 0.0
    request_s: float = 0.0
    host_s: float = 0.0
    block_size_tokens: int = 16
    kv_blocks: int = 1 << 20
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 8192


_FIELDS = [item.encode_name for kind in (EngineFields, PieceFields) for item in msgspec.structs.fields(kind)]


def changed_fields(value: Any, layout: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields of a domain object that are required by `layout` or differ from its defaults."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(layout):
        item = getattr(value, field.name)
        if field.required or item != field.default:
            found[field.name] = float(item) if field.type in (float, float | None) else item
    return found


def engine_fields(engine: EngineModel) -> dict[str, Any]:
    """An engine as a JSON object."""
    pieces = [changed_fields(piece, PieceFields) for piece in engine.pieces]
    return {**changed_fields(engine, EngineFields), "pieces": pieces}


def engine_of(fields: EngineFields) -> EngineModel:
    """The engine that was described.

    Raises
    ------
    InvalidInputError
        It means nothing: a negative time, no KV block.
    """
    pieces = tuple(RooflinePiece(p.per_token_s, p.base_s, p.per_draft_step_s) for p in fields.pieces)
    values = {name: getattr(fields, name) for name in fields.__struct_fields__}
    return EngineModel(**{**values, "pieces": pieces})


def encode_engine(engine: EngineModel) -> bytes:
    """The file of an engine, every field of it; the same engine gives the same bytes."""
    pieces = [{name: getattr(piece, name) for name in PieceFields.__struct_fields__} for piece in engine.pieces]
    values = {name: getattr(engine, name) for name in EngineFields.__struct_fields__}
    return msgspec.json.format(msgspec.json.encode({**values, "pieces": pieces}), indent=1) + b"\n"


def read_engine(path: str | Path) -> EngineModel:
    """An engine from a file, plain or gzip, or from standard input (``-``).

    Raises
    ------
    TraceFormatError
        With the line of a syntax error, or the JSON pointer of a wrong value.
    """
    source = load(path, "engine")
    try:
        fields = msgspec.json.decode(source.text, type=EngineFields)
    except msgspec.ValidationError as error:
        raise _refused(source, str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(source, str(error)) from None
    try:
        return engine_of(fields)
    except InvalidInputError as error:
        raise source.error("$", str(error), "Correct the value.") from None


def _refused(source: Source, message: str) -> InvalidInputError:
    if '"slo-opt-' in source.text[:200]:
        return source.error("$", "holds no engine but another file of slo-opt", "Give what slo-opt calibrate wrote.")
    return invalid(source, message, _FIELDS, PAGE)


def engine_from(text: str) -> EngineModel:
    """The built-in engine of that name, or the engine in the file of that path.

    Raises
    ------
    InvalidInputError
        There is neither; or the file holds no engine.
    """
    if text not in ENGINES and (Path(text).name.endswith((".json", ".json.gz")) or Path(text).is_file()):
        return read_engine(text)
    try:
        return engine_named(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}; or the file that `slo-opt calibrate` wrote") from None


def portable(engine: str | EngineModel | None) -> str | EngineModel | None:
    """What a trace may keep: a built-in engine by name, the content of a file in place of its path.

    Raises
    ------
    InvalidInputError
        See `engine_from`.
    """
    return engine_from(engine) if isinstance(engine, str) and engine not in ENGINES else engine
