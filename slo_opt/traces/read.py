"""Read a trace in any known format and make it ready to be solved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.traces.engine_file import portable
from slo_opt.traces.formats import azure, bailian, burstgpt, decision_log, mooncake, native, plain
from slo_opt.traces.formats.detect import TraceFormat, detect, format_named
from slo_opt.traces.rows import RawTrace, Scalar
from slo_opt.traces.scenarios import SCENARIOS, apply_scenario, scenario_named
from slo_opt.traces.source import Source, load
from slo_opt.traces.trace import Arrival, Trace, ordering_problem
from slo_opt.traces.transforms import by_arrival, scale, window

_READERS: dict[TraceFormat, Callable[[Source], RawTrace]] = {
    TraceFormat.AZURE: azure.read,
    TraceFormat.BURSTGPT: burstgpt.read,
    TraceFormat.MOONCAKE: mooncake.read,
    TraceFormat.BAILIAN: bailian.read,
    TraceFormat.CSV: plain.read_csv,
    TraceFormat.JSONL: plain.read_jsonl,
}


def read_trace(
    path: str | Path,
    *,
    input_format: str | None = None,
    scenario: str | None = None,
    engine: str | EngineModel | None = None,
    seed: int = 0,
    window: tuple[float, float] | None = None,
    scale: float = 1.0,
    sort: bool = False,
    prefix_cache: bool = False,
) -> Trace:
    """Read a trace file and make it ready to be solved.

    Parameters
    ----------
    path : str or Path
        A file, plain or gzip, or ``-`` for standard input.
    input_format : str, optional
        Name of the format; told by the content if not given.
    scenario : str, optional
        SLOs to assign. Raw formats carry none and need one; a native trace given one has its SLOs re-assigned.
    engine : str or EngineModel, optional
        A built-in engine, a file of one, or a model. Becomes the trace's engine; with a scenario, requests over its
        context are dropped and counted.
    seed : int
        For what the scenario draws.
    window : (float, float), optional
        Seconds ``[lo, hi)`` of source time to keep, shifted to start at 0. Applied before `scale`.
    scale : float
        Factor on the arrival rate.
    sort : bool
        Sort by arrival instead of refusing unsorted rows.
    prefix_cache : bool
        Mooncake only: an infinite prefix cache serves repeated leading blocks.

    Returns
    -------
    Trace
        With its source and every transformation in the provenance.

    Raises
    ------
    TraceFormatError
        The file is damaged or holds something else than its format says.
    InvalidInputError
        Unknown format, scenario or engine; no scenario for a raw format; an empty window; an impossible scale.
    """
    trace = read_any(
        path,
        input_format=input_format,
        scenario=scenario,
        engine=engine,
        seed=seed,
        window=window,
        scale=scale,
        sort=sort,
        prefix_cache=prefix_cache,
    )
    if isinstance(trace, RawTrace):
        raise InvalidInputError(
            f"{trace.path}: a trace in {trace.provenance['format']} format carries no SLOs; choose a scenario: "
            f"--scenario {'|'.join(SCENARIOS)}"
        )
    return trace


def read_any(
    path: str | Path | Source,
    *,
    input_format: str | None = None,
    scenario: str | None = None,
    engine: str | EngineModel | None = None,
    seed: int = 0,
    window: tuple[float, float] | None = None,
    scale: float = 1.0,
    sort: bool = False,
    prefix_cache: bool = False,
) -> Trace | RawTrace:
    """As `read_trace`, but a raw format without a scenario gives its rows, which carry no SLOs.

    `path` may be a source that is loaded already.
    """
    if scenario is not None:
        scenario_named(scenario)
    engine = portable(engine)
    chosen = None if input_format is None else format_named(input_format)
    source = path if isinstance(path, Source) else load(path)
    chosen = detect(source) if chosen is None else chosen
    if chosen is not TraceFormat.MOONCAKE and prefix_cache:
        raise InvalidInputError(f"{source.path}: a prefix cache needs the hash_ids of a mooncake trace; leave it off")
    if chosen is TraceFormat.DECISION_LOG:
        return _served(source, scenario, engine, seed, window, scale)
    if chosen is not TraceFormat.NATIVE:
        raw = _raw_as_asked(read_rows(source, chosen, sort=sort, prefix_cache=prefix_cache), window, scale)
        return raw if scenario is None else apply_scenario(raw, scenario, engine, seed)
    trace = native.read(source, sort=sort)
    if scenario is None:
        return _native_as_asked(source.path, trace, engine, window, scale)
    return _with_scenario(source.path, trace, scenario, engine, seed, window, scale)


def _served(
    source: Source,
    scenario: str | None,
    engine: str | EngineModel | None,
    seed: int,
    span: tuple[float, float] | None,
    factor: float,
) -> Trace:
    """What a live engine served, with how it fared, unless that is about other requests than those asked for."""
    served = decision_log.read(source)
    trace = served.trace.with_provenance(source=Path(source.path).name)
    if scenario is not None:
        return _with_scenario(source.path, trace, scenario, engine, seed, span, factor)
    asked = _native_as_asked(source.path, trace, engine, span, factor)
    return asked.with_provenance(**served.outcome(asked.requests)) if factor == 1 else asked


def _with_scenario(
    path: str,
    trace: Trace,
    scenario: str,
    engine: str | EngineModel | None,
    seed: int,
    span: tuple[float, float] | None,
    factor: float,
) -> Trace:
    """The requests of a trace under other SLOs than its own."""
    raw = replace(trace.raw(), path=path, provenance=decision_log.without_outcome(trace.provenance))
    raw = _raw_as_asked(raw, span, factor)
    return apply_scenario(raw, scenario, trace.engine if engine is None else engine, seed)


def read_rows(source: Source, input_format: TraceFormat, *, sort: bool = False, prefix_cache: bool = False) -> RawTrace:
    """Rows of a raw format, sorted by arrival, ids unique.

    Raises
    ------
    TraceFormatError
        As for `read_trace`; also when no row is left.
    """
    if input_format is TraceFormat.MOONCAKE:
        raw = mooncake.read(source, prefix_cache=prefix_cache)
    else:
        raw = _READERS[input_format](source)
    if not raw.rows:
        raise source.error("file", "holds no request with tokens; expected at least one row", "Give a file with rows.")
    if sort:
        raw = replace(raw, rows=by_arrival(raw.rows))
    problem = ordering_problem(raw.rows)
    if problem is not None:
        raise TraceFormatError(source.path, f"line {raw.rows[problem[0]].line}", problem[1], problem[2])
    facts: dict[str, Scalar] = {"source": Path(source.path).name, **raw.provenance, "rows": len(raw.rows)}
    return replace(raw, provenance=facts)


def _window_facts(span: tuple[float, float] | None, factor: float) -> dict[str, Scalar]:
    facts: dict[str, Scalar] = {}
    if span is not None:
        facts["window_s"] = f"{span[0]:g}:{span[1]:g}"
    if factor != 1:
        facts["rate_scale"] = factor
    return facts


def _raw_as_asked(raw: RawTrace, span: tuple[float, float] | None, factor: float) -> RawTrace:
    rows = _cut(raw.path, raw.rows, span)
    facts = _window_facts(span, factor)
    return replace(raw, rows=scale(rows, factor), provenance={**raw.provenance, **facts})


def _cut(path: str, items: tuple[Arrival, ...], span: tuple[float, float] | None) -> tuple[Arrival, ...]:
    try:
        return items if span is None else window(items, *span)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from None


def _native_as_asked(
    path: str, trace: Trace, engine: str | EngineModel | None, span: tuple[float, float] | None, factor: float
) -> Trace:
    requests = _cut(path, trace.requests, span)
    if span is not None or factor != 1:
        trace = replace(trace, provenance=decision_log.without_outcome(trace.provenance))
    return replace(
        trace,
        requests=scale(requests, factor),
        engine=trace.engine if engine is None else engine,
        provenance={**trace.provenance, **_window_facts(span, factor)},
    )
