"""CSV and JSONL rows, checked against the columns a format declares; every error names its line and column."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec

from slo_opt.domain.errors import TraceFormatError
from slo_opt.domain.request import MAX_TOKENS
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.source import Source

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

Columns = TypeVar("Columns", bound=msgspec.Struct)
_AT = re.compile(r"^(?P<what>.*?) - at `\$\.?(?P<column>.*)`$", re.DOTALL)
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def csv_rows(source: Source, columns: type[Columns]) -> Iterator[tuple[int, Columns]]:
    """Line number and checked columns of each row of a CSV file with a header; blank lines are skipped.

    Raises
    ------
    TraceFormatError
        A column is missing or misspelt, a row has another number of fields than the header, a value is out of range.
    """
    reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                continue
            if not header:
                header = [field.strip() for field in fields]
                _check_names(source, reader.line_num, header, columns)
                optional = {field.encode_name for field in msgspec.structs.fields(columns) if not field.required}
                continue
            if len(fields) != len(header):
                raise source.error(
                    reader.line_num,
                    f"has {len(fields)} fields; expected {len(header)} ({','.join(header)})",
                    "Complete or remove the line; the file may be cut short.",
                )
            values = dict(zip(header, fields, strict=True))
            for name in optional:
                if values.get(name) == "":
                    del values[name]
            yield reader.line_num, _converted(source, reader.line_num, values, columns, strict=False)
    except csv.Error as error:
        raise source.error(
            reader.line_num, f"is not CSV ({error}); expected comma-separated values", "Check quotes and line ends."
        ) from None


def jsonl_rows(source: Source, columns: type[Columns]) -> Iterator[tuple[int, Columns]]:
    """Line number and checked fields of each line of a JSONL file; blank lines are skipped.

    Raises
    ------
    TraceFormatError
        A line is no JSON object, lacks or misspells a field, or holds a value out of range.
    """
    checked: set[tuple[str, ...]] = set()
    for line, text in enumerate(source.text.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            values = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise source.error(
                line, f"is not JSON ({error}); expected one JSON object", "Mend or remove the line."
            ) from None
        if not isinstance(values, dict):
            raise source.error(line, "is not a JSON object", "Write one object a line, {...}.")
        names = tuple(values)
        if names not in checked:
            _check_names(source, line, names, columns)
            checked.add(names)
        yield line, _converted(source, line, values, columns, strict=True)


def _check_names(source: Source, line: int, names: list[str] | tuple[str, ...], columns: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(columns)
    known = [field.encode_name for field in fields]
    unknown = [name for name in names if name not in known]
    repeated = sorted({name for name in names if names.count(name) > 1 and name in known})
    if repeated:
        raise source.error(line, f"column {repeated[0]!r} appears twice", "Keep one of the two.")
    for field in fields:
        if field.required and field.encode_name not in names:
            hint = did_you_mean(field.encode_name, unknown)
            found = ", ".join(map(repr, names)) or "none"
            raise source.error(
                line,
                f"column {field.encode_name!r} is missing; found {found}",
                f"{hint}Add the column or choose another --input-format.",
            )
    for name in unknown:  # other columns are welcome, misspelt ones would be lost without a word
        hint = did_you_mean(name, [other for other in known if other not in names])
        if hint:
            raise source.error(line, f"unknown column {name!r}", f"{hint}Rename or remove it.")


def _converted(source: Source, line: int, values: dict[str, Any], columns: type[Columns], *, strict: bool) -> Columns:
    try:
        return msgspec.convert(values, columns, strict=strict)
    except msgspec.ValidationError as error:
        raise value_error(source, line, error, values) from None


def in_words(message: str) -> str:
    """A message of msgspec with its type names in words."""
    for type_name, words in _WORDS.items():
        message = message.replace(f"`{type_name}`", words).replace(f"`{type_name} | null`", words)
    return message[0].lower() + message[1:]


def value_error(source: Source, line: int, error: Exception, values: dict[str, Any]) -> TraceFormatError:
    """A validation error in the words of this project: column, expectation, what was found, how to mend it."""
    match = _AT.match(str(error))
    if match is None:
        return source.error(line, str(error), "Mend or remove the line.")
    what, column = in_words(match["what"].split(", got ")[0]), match["column"]
    found = values.get(column.split("[")[0], "nothing")
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    return source.error(line, f"column {column!r}: {what}, found {shown}", "Correct it or remove the line.")
