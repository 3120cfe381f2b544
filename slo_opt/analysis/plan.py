"""The plan file: report, trace as solved, and schedule in one JSON object, for `explain` and for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.traces.formats import native
from slo_opt.traces.formats.tables import in_words
from slo_opt.traces.source import Source, load
from slo_opt.traces.trace import Trace

FORMAT = "slo-opt-plan"
VERSION = 1
_REMEDY = "Give a file that `slo-opt solve -o` wrote."

_Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class _Head(msgspec.Struct, frozen=True):
    format: Any = None
    version: Any = None


class _ScheduleFields(msgspec.Struct, frozen=True):
    """As `Schedule.to_dict` writes them."""

    start_s: list[float]
    replica: list[_Index]
    offset: list[_Index]
    request: list[_Index]
    tokens: list[_Index]
    emitted: list[_Index] | None
    preempted: dict[int, list[_Index]]
    admitted: list[_Index]
    duration_s: list[float] | None = None
    cached: dict[int, _Index] = {}


class _Fields(msgspec.Struct, frozen=True):
    report: dict[str, Any]
    num_replicas: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    trace: msgspec.Raw
    schedule: _ScheduleFields | None = None


Layout = TypeVar("Layout", _Head, _Fields)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan file in memory.

    Parameters
    ----------
    report : dict
        As printed by ``solve --format json``.
    instance : Instance
        What was solved.
    schedule : Schedule or None
        The plan; None where only a bound was found.
    """

    report: dict[str, Any]
    instance: Instance
    schedule: Schedule | None


def encode_plan(report: dict[str, Any], instance: Instance, schedule: Schedule | None) -> bytes:
    """The plan as JSON; `read_plan` is its inverse."""
    trace = Trace(instance.name, instance.requests, instance.slo_classes, instance.engine, instance.score_rule)
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "report": report,
        "num_replicas": instance.num_replicas,
        "trace": msgspec.Raw(native.encode(trace)),
        "schedule": None if schedule is None else schedule.to_dict(),
    }
    return msgspec.json.encode(fields) + b"\n"


def read_plan(path: str | Path) -> Plan:
    """Read a plan file; its schedule is replayed and refused if it breaks a rule.

    Raises
    ------
    TraceFormatError
        The file is no plan, is damaged, or holds a schedule that is illegal on its own trace.
    """
    source = load(path)
    head = _decoded(source, _Head)
    if head.format != FORMAT:
        remedy = "This is a trace: slo-opt solve." if head.format == native.FORMAT else _REMEDY
        raise source.error("$.format", f"expected {FORMAT!r}", remedy)
    if head.version != VERSION:
        raise source.error("$.version", f"unknown version {head.version!r}; expected {VERSION}", _REMEDY)
    fields = _decoded(source, _Fields)
    trace = native.read(Source(f"{source.path}#trace", bytes(fields.trace).decode()))
    if trace.engine is None:
        raise source.error("$.trace.engine", "is missing", _REMEDY)
    instance = trace.to_instance(num_replicas=fields.num_replicas)
    schedule = None if fields.schedule is None else _schedule(source, instance, fields.schedule)
    return Plan(fields.report, instance, schedule)


def _decoded(source: Source, layout: type[Layout]) -> Layout:
    try:
        return msgspec.json.decode(source.text, type=layout)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise source.error(place.strip("`") or "$", in_words(what), _REMEDY) from None
    except msgspec.DecodeError as error:
        raise source.error("file", f"is not JSON ({error})", _REMEDY) from None
    except RecursionError:
        raise source.error("file", "is nested too deeply", _REMEDY) from None


def _schedule(source: Source, instance: Instance, fields: _ScheduleFields) -> Schedule:
    known = len(instance.requests)
    lists = {"request": fields.request, "admitted": fields.admitted}
    lists |= {f"preempted[{batch}]": requests for batch, requests in fields.preempted.items()}
    for name, requests in lists.items():
        for place, index in enumerate(requests):
            if index >= known:
                problem = f"names request {index}; the trace has requests 0 to {known - 1}"
                raise source.error(f"$.schedule.{name}[{place}]", problem, _REMEDY)

    def refused(problem: str) -> TraceFormatError:
        return source.error("$.schedule", problem, _REMEDY)

    try:
        schedule = Schedule.from_dict(msgspec.structs.asdict(fields))
        violations = evaluate(instance, schedule).violations
    except InvalidInputError as error:
        raise refused(str(error)) from None
    except (IndexError, ValueError, OverflowError) as error:
        raise refused(f"cannot be replayed ({type(error).__name__}: {error})") from None
    if violations:
        raise refused(f"is illegal: {violations[0]}")
    return schedule
