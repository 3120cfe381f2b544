"""What msgspec says of a damaged JSON file, in the words of this project: place, expectation, how to mend it."""

import re
from collections.abc import Sequence

from slo_opt.domain.errors import TraceFormatError
from slo_opt.traces.formats.tables import in_words
from slo_opt.traces.nearest import did_you_mean
from slo_opt.traces.source import Source

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<place>\$.*)`)?$", re.DOTALL)
_BYTE = re.compile(r"^(?P<what>.*) \(byte (?P<byte>\d+)\)$", re.DOTALL)


def malformed(source: Source, message: str) -> TraceFormatError:
    """A syntax error, placed by line and column."""
    match = _BYTE.match(message)
    if match is None:
        line = source.text.rstrip().count("\n") + 1
        return source.error(line, f"is not JSON ({message}); expected a complete JSON object", "Complete the file.")
    before = source.text.encode()[: int(match["byte"])]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return source.error(
        f"line {line}, column {column}",
        f"is not JSON ({match['what'].removeprefix('JSON is malformed: ')}); NaN and comments are not JSON either",
        "Mend the file there.",
    )


def place_of(message: str) -> tuple[str, str]:
    """What is wrong, and the JSON pointer of where."""
    match = _AT.match(message)
    assert match is not None
    return match["what"], match["place"] or "$"


def unknown_field(what: str) -> str | None:
    """The field that a layout does not know, if that is what is wrong."""
    return _field(what, "Object contains unknown field")


def missing_field(what: str) -> str | None:
    """The field that is required and not there, if that is what is wrong."""
    return _field(what, "Object missing required field")


def _field(what: str, beginning: str) -> str | None:
    quoted = re.search(r"`([^`]*)`", what)
    return quoted[1] if what.startswith(beginning) and quoted is not None else None


def invalid(source: Source, message: str, known: Sequence[str], page: str) -> TraceFormatError:
    """A wrong value, placed by JSON pointer.

    Parameters
    ----------
    source : Source
        The file.
    message : str
        Of msgspec's ValidationError.
    known : sequence of str
        Fields that may stand in such a file, for suggestions.
    page : str
        The document that lists them.
    """
    what, place = place_of(message)
    if (field := unknown_field(what)) is not None:
        return source.error(place, f"unknown field {field!r}", f"{did_you_mean(field, known)}Rename or remove it.")
    if (field := missing_field(what)) is not None:
        return source.error(place, f"required field {field!r} is missing", f"Add it; {page} lists the fields.")
    return source.error(place, in_words(what), f"Correct the value; {page} has the types.")
