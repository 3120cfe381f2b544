"""The plan file: report, trace as solved, and schedule in one JSON object, for `explain` and for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule
from slo_opt.traces.formats import native
from slo_opt.traces.source import Source, load
from slo_opt.traces.trace import Trace

FORMAT = "slo-opt-plan"
VERSION = 1
_REMEDY = "Give a file that `slo-opt solve -o` wrote."


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
    try:
        fields = msgspec.json.decode(source.text)
    except msgspec.DecodeError as error:
        raise source.error("file", f"is not JSON ({error})", _REMEDY) from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise source.error("$.format", f"expected {FORMAT!r}", _REMEDY)
    if fields.get("version") != VERSION:
        raise source.error("$.version", f"unknown version {fields.get('version')!r}; expected {VERSION}", _REMEDY)
    for key, kind in (("report", dict), ("trace", dict), ("num_replicas", int)):
        if not isinstance(fields.get(key), kind):
            raise source.error(f"$.{key}", "is missing or of the wrong type", _REMEDY)
    trace = native.read(Source(f"{source.path}#trace", msgspec.json.encode(fields["trace"]).decode()))
    instance = trace.to_instance(num_replicas=fields["num_replicas"])
    schedule = None if fields.get("schedule") is None else _schedule(source, instance, fields["schedule"])
    return Plan(fields["report"], instance, schedule)


def _schedule(source: Source, instance: Instance, fields: Any) -> Schedule:
    def refused(problem: str) -> TraceFormatError:
        return source.error("$.schedule", problem, _REMEDY)

    try:
        schedule = Schedule.from_dict(fields)
    except InvalidInputError as error:
        raise refused(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused(f"cannot be read ({type(error).__name__}: {error})") from None
    try:
        violations = evaluate(instance, schedule).violations
    except (IndexError, ValueError, OverflowError) as error:
        raise refused(f"cannot be replayed ({type(error).__name__}: {error})") from None
    if violations:
        raise refused(f"is illegal: {violations[0]}")
    return schedule
