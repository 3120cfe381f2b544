"""`slo-opt trace`: convert, generate, describe and validate traces."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slo_opt.cli.inputs import parse_window
from slo_opt.cli.options import BestEffort, Format, Printed, TraceFile

if TYPE_CHECKING:
    from slo_opt.domain.request import Request
    from slo_opt.traces.trace import Trace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Convert, generate, describe and validate traces.")

Output = Annotated[
    Path, typer.Option("-o", "--output", help="Where to write trace.json, gzip if it ends in .gz; - for stdout.")
]
Engine = Annotated[
    str | None, typer.Option(help="Engine the trace is for; a scenario first drops requests over its context.")
]
ScenarioName = Annotated[str | None, typer.Option("--scenario", help="SLOs to assign: coder, chatbot, polyserve, ...")]
InputFormat = Annotated[str | None, typer.Option(help="Format of the file, where its content does not tell.")]
Window = Annotated[str | None, typer.Option(metavar="START:END", help="Part of the trace, in seconds of source time.")]
Scale = Annotated[float, typer.Option(help="Arrival-rate factor, applied after the window: 2 is twice the load.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Sort = Annotated[bool, typer.Option("--sort", help="Sort by arrival instead of refusing unsorted rows.")]
PrefixCache = Annotated[bool, typer.Option("--prefix-cache", help="Mooncake: cache repeated leading blocks.")]


@app.command(short_help="Another format as trace.json, with SLOs.")
def convert(
    trace: TraceFile,
    output: Output = Path("-"),
    scenario: ScenarioName = None,
    engine: Engine = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    sort: Sort = False,
    prefix_cache: PrefixCache = False,
    best_effort: BestEffort = 0.0,
    seed: Seed = 0,
) -> None:
    """Write any known trace as trace.json, with SLOs from a scenario where it has none."""
    from slo_opt.cli.output import check_writable
    from slo_opt.traces.best_effort import with_best_effort
    from slo_opt.traces.read import read_trace

    span = parse_window(window)
    if str(output) != "-":
        check_writable(output)
    converted = read_trace(
        trace,
        input_format=input_format,
        scenario=scenario,
        engine=engine,
        seed=seed,
        window=span,
        scale=scale,
        sort=sort,
        prefix_cache=prefix_cache,
    )
    _write(with_best_effort(converted, best_effort, seed) if best_effort else converted, output)


@app.command(short_help="Draw a trace like a published workload.")
def generate(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD", help="Scenario (coder, chatbot, mixed, ...) or profile (azure-code, sharegpt, ...)."
        ),
    ],
    output: Output = Path("-"),
    rate: Annotated[float | None, typer.Option(help="Requests a second; default: the workload's own.")] = None,
    duration: Annotated[float, typer.Option(help="Seconds.")] = 300.0,
    seed: Seed = 0,
    engine: Engine = None,
    scenario: ScenarioName = None,
    arrivals: Annotated[
        str | None, typer.Option(help="poisson, bursty or gamma:CV; default: the workload's own.")
    ] = None,
    best_effort: BestEffort = 0.0,
    name: Annotated[str | None, typer.Option(help="Name of the trace; default: the workload.")] = None,
) -> None:
    """Draw a trace with the statistics of a published workload."""
    import shlex

    from slo_opt.cli.output import check_writable
    from slo_opt.traces.generate import generate as draw

    if str(output) != "-":
        check_writable(output)
    drawn = draw(
        workload,
        rate=rate,
        duration_s=duration,
        seed=seed,
        engine=engine,
        scenario=scenario,
        arrivals=arrivals,
        best_effort=best_effort,
        name=name,
    )
    options = {
        "--rate": rate,
        "--duration": duration,
        "--seed": seed,
        "--engine": engine,
        "--scenario": scenario,
        "--arrivals": arrivals,
        "--best-effort": best_effort or None,
        "--name": name,
    }
    words = ["slo-opt", "trace", "generate", workload]
    for option, value in options.items():
        if value is not None:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    _write(drawn.with_provenance(command=shlex.join(words)), output)


@app.command(short_help="Load, burstiness and lengths by SLO class.")
def describe(
    trace: TraceFile,
    scenario: ScenarioName = None,
    engine: Engine = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    sort: Sort = False,
    seed: Seed = 0,
    output_format: Printed = Format.TABLE,
) -> None:
    """Show load, burstiness and lengths, for each SLO class."""
    from slo_opt.traces.describe import describe as statistics_of
    from slo_opt.traces.read import read_any

    found = read_any(
        trace,
        input_format=input_format,
        scenario=scenario,
        engine=engine,
        seed=seed,
        window=parse_window(window),
        scale=scale,
        sort=sort,
    )
    statistics = statistics_of(found)
    if output_format is Format.JSON:
        from dataclasses import asdict

        from slo_opt.cli.console import show_json

        show_json(asdict(statistics))
        return
    from slo_opt.cli.console import show
    from slo_opt.report.trace import trace_tables

    show(trace_tables(statistics))


@app.command(short_help="Whether a trace is sound, and if not, where.")
def validate(
    trace: TraceFile,
    input_format: InputFormat = None,
    engine: Annotated[str | None, typer.Option(help="Engine to try the requests on; default: the trace's.")] = None,
    output_format: Printed = Format.TABLE,
) -> None:
    """Check a trace: exit code 0 if it is valid, 3 with place and remedy if not.

    Requests that the engine can never serve are counted, with the first reason: such a trace is valid, too.
    """
    from slo_opt.traces.formats.detect import detect, format_named
    from slo_opt.traces.read import read_any
    from slo_opt.traces.rows import RawTrace
    from slo_opt.traces.source import load
    from slo_opt.traces.unservable import unservable_requests

    source = load(trace)
    layout = detect(source) if input_format is None else format_named(input_format)
    found = read_any(source, input_format=layout, engine=engine)
    raw = isinstance(found, RawTrace)
    count = len(found.rows) if isinstance(found, RawTrace) else len(found.requests)
    refused: tuple[tuple[Request, str], ...] = ()
    if not isinstance(found, RawTrace) and found.engine is not None:
        refused = unservable_requests(found.to_instance())
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        document = {"valid": True, "format": layout.value, "requests": count, "has_slos": not raw}
        first = f"{refused[0][0].id}: {refused[0][1]}" if refused else None
        show_json({**document, "unservable": len(refused), "first_unservable": first})
        return
    typer.echo(f"{trace}: valid ({layout} format), {count:,} requests{', no SLOs yet' if raw else ''}")
    if refused:
        typer.echo(f"{len(refused):,} can never be served, the first: request {refused[0][0].id!r}: {refused[0][1]}")


def _write(trace: "Trace", output: Path) -> None:
    from slo_opt.traces.write import write_trace

    write_trace(trace, output)
