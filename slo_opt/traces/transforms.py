"""Windows, arrival-rate scaling and sorting, alike for raw rows and for requests."""

from collections.abc import Sequence
from dataclasses import replace

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Prefix
from slo_opt.traces.trace import Arrival, Trace


def window(items: Sequence[Arrival], lo_s: float, hi_s: float) -> tuple[Arrival, ...]:
    """Items that arrive in ``[lo_s, hi_s)``, shifted so that the window starts at 0.

    Raises
    ------
    InvalidInputError
        The window is not an interval of times >= 0, or nothing arrives in it.
    """
    if not 0 <= lo_s < hi_s:  # NaN fails too
        raise InvalidInputError(f"window {lo_s}:{hi_s} is not an interval; give START:END in seconds, 0 <= START < END")
    kept = tuple(replace(item, arrival_s=item.arrival_s - lo_s) for item in items if lo_s <= item.arrival_s < hi_s)
    if not kept:
        times_s = [item.arrival_s for item in items] or [0.0]
        raise InvalidInputError(
            f"no request arrives in the window {lo_s:g}:{hi_s:g} s; arrivals run from {min(times_s):.3f} to "
            f"{max(times_s):.3f} s: choose a window among them"
        )
    return kept


def scale(items: Sequence[Arrival], factor: float) -> tuple[Arrival, ...]:
    """The same items at `factor` times the arrival rate: arrival times are divided by it.

    Raises
    ------
    InvalidInputError
        The factor is not in [1e-6, 1e6].
    """
    if not 1e-6 <= factor <= 1e6:
        raise InvalidInputError(f"scale is {factor}; expected a rate factor in [1e-6, 1e6], 2 for twice the load")
    if factor == 1:
        return tuple(items)
    return tuple(replace(item, arrival_s=item.arrival_s / factor) for item in items)


def by_arrival(items: Sequence[Arrival]) -> tuple[Arrival, ...]:
    """Items sorted by arrival; equal arrivals keep their order."""
    return tuple(sorted(items, key=lambda item: item.arrival_s))


def merge(name: str, traces: Sequence[Trace]) -> Trace:
    """Union of traces, by arrival. Ids get their trace's name in front; classes of one name must be equal.

    Raises
    ------
    InvalidInputError
        No trace, two classes of one name that differ, engines or score rules that differ.
    """
    if not traces:
        raise InvalidInputError("nothing to merge; give at least one trace")
    first = traces[0]
    classes = dict(first.slo_classes)
    for trace in traces[1:]:
        if trace.engine != first.engine or trace.score_rule != first.score_rule:
            raise InvalidInputError(f"{trace.name} and {first.name} differ in engine or score rule; make them equal")
        for slo in trace.slo_classes.values():
            if classes.setdefault(slo.name, slo) != slo:
                raise InvalidInputError(f"SLO class {slo.name!r} means two things in the traces to merge; rename one")
    blocks: dict[tuple[int, int], int] = {}
    requests = [
        replace(request, id=f"{trace.name}-{request.id}", prefix=_apart(request.prefix, number, blocks))
        for number, trace in enumerate(traces)
        for request in trace.requests
    ]
    parts = ", ".join(trace.name for trace in traces)
    return Trace(name, by_arrival(requests), classes, first.engine, first.score_rule, {"merged_from": parts})


def _apart(prefix: Prefix | None, number: int, blocks: dict[tuple[int, int], int]) -> Prefix | None:
    """The prefix with ids that no other trace has."""
    if prefix is None:
        return None
    return replace(prefix, blocks=tuple(blocks.setdefault((number, block), len(blocks)) for block in prefix.blocks))
