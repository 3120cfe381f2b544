"""`slo-opt solve`: the best schedule found for a trace, a proved bound, and the gap."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slo_opt.cli.options import (
    Engine,
    Format,
    InputFormat,
    OnUnservable,
    Printed,
    Quiet,
    Scale,
    ScenarioName,
    ScoreRuleName,
    Seed,
    TraceFile,
    UnservablePolicy,
    Window,
)

if TYPE_CHECKING:
    from slo_opt.analysis.solve import SolveReport

DEFAULT_METHODS = "search,highs"


def parse_methods(text: str) -> tuple[str, ...]:
    """Read a comma list of methods.

    Raises
    ------
    InvalidInputError
        It names none.
    """
    from slo_opt.cli.inputs import comma_list
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.solvers.registry import SCHEDULE_SOLVERS

    names = comma_list(text)
    if not names:
        raise InvalidInputError(f"--method {text!r} names no method; known: {', '.join(SCHEDULE_SOLVERS)}")
    return names


def solve(
    trace: TraceFile,
    engine: Engine = None,
    scenario: ScenarioName = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    method: Annotated[
        str, typer.Option(help="Comma list of search, dp (schedules), highs, cvxpy (bounds), cpsat (both, small).")
    ] = DEFAULT_METHODS,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for all methods together.", min=0.0, max=1e9)
    ] = None,
    gap: Annotated[float, typer.Option(help="Relative gap at which cpsat may stop.", min=0.0)] = 0.0,
    seed: Seed = 0,
    threads: Annotated[int, typer.Option(help="Threads a solver may use; search and dp use one.", min=1)] = 1,
    score_rule: ScoreRuleName = None,
    replicas: Annotated[int, typer.Option(help="Equal replicas of the engine.", min=1)] = 1,
    unservable: OnUnservable = UnservablePolicy.ERROR,
    output_format: Printed = Format.TABLE,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write report, trace and schedule here, for `explain`; - for stdout."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the timeline here (png, svg, pdf), and FILE-bounds beside it.")
    ] = None,
    quiet: Quiet = False,
    log: Annotated[bool, typer.Option("--log", help="Solver logs on stderr.")] = False,
) -> None:
    """Find the best schedule of a trace, prove a bound on any schedule, and show the gap.

    Prints a table (or one JSON object): per method what it attained, what it proved, the gap and the time; per SLO
    class what was offered, admitted and attained.
    """
    from slo_opt.analysis.plan import encode_plan
    from slo_opt.analysis.solve import solve_instance
    from slo_opt.cli.inputs import parse_window, read_instance, score_rule_named
    from slo_opt.cli.output import check_writable, same_file
    from slo_opt.cli.progress import progress
    from slo_opt.report.document import solve_document
    from slo_opt.solvers.interface import SolverConfig
    from slo_opt.traces.atomic import is_stdout, write_bytes

    methods, span, rule = parse_methods(method), parse_window(window), score_rule_named(score_rule)
    for path in (output, plot):
        if path is not None and not is_stdout(path):
            check_writable(path)
    if plot is not None:
        from slo_opt.report.figure import require_matplotlib

        require_matplotlib(plot)
        if output is not None and any(same_file(output, picture) for picture in (plot, _bounds_beside(plot))):
            raise typer.BadParameter(f"-o and --plot would both write {output}; choose two names")
    with progress(quiet or log) as report_progress:
        instance, source = read_instance(
            trace,
            engine=engine,
            scenario=scenario,
            input_format=input_format,
            window=span,
            scale=scale,
            seed=seed,
            score_rule=rule,
            unservable=unservable.value,
            num_replicas=replicas,
        )
        config = SolverConfig(time_limit, gap, seed, threads, log, report_progress)
        report = solve_instance(instance, methods, config)
    document = solve_document(report, source, config)
    # A disk or a picture that fails must not cost the result: it is printed all the same.
    try:
        if output is not None:
            write_bytes(output, encode_plan(document, instance, report.schedule))
    finally:
        if output is None or not is_stdout(output):
            _print(document, output_format)
    if plot is not None:
        _draw(plot, report)
    _exit(report, methods)


def _bounds_beside(plot: Path) -> Path:
    return plot.with_name(f"{plot.stem}-bounds{plot.suffix}")


def _draw(path: Path, report: "SolveReport") -> None:
    from slo_opt.report.bounds import draw_bounds
    from slo_opt.report.timeline import draw_timeline
    from slo_opt.traces.atomic import write_atomic

    bounds = _bounds_beside(path)
    if report.schedule is not None:
        write_atomic(path, lambda temporary: draw_timeline(report, temporary))
    else:
        typer.echo(f"slo-opt: no schedule was found, so {path} is not drawn; {bounds} shows the bound", err=True)
    write_atomic(bounds, lambda temporary: draw_bounds(report, temporary))


def _print(document: dict[str, object], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.table import solve_tables

    show(solve_tables(document))


def _exit(report: "SolveReport", methods: tuple[str, ...]) -> None:
    """Leave with a code other than 0 where what was asked for did not come back."""
    from slo_opt.analysis.solve import BOUND_METHODS
    from slo_opt.cli.exits import ExitCode
    from slo_opt.solvers.interface import Termination

    failed = [item for item in report.methods if item.status is Termination.ERROR]
    for item in failed:
        typer.echo(f"slo-opt: error: method {item.method!r} failed: {item.message}", err=True)
    if failed:
        raise typer.Exit(ExitCode.UNEXPECTED)
    only_bounds = BOUND_METHODS.issuperset(methods)
    if report.schedule is not None or (only_bounds and any(item.bound is not None for item in report.methods)):
        return
    infeasible = any(item.status is Termination.INFEASIBLE for item in report.methods)
    message = "proved infeasible" if infeasible else "a limit was reached before anything was found; raise --time-limit"
    typer.echo(f"slo-opt: {message}", err=True)
    raise typer.Exit(ExitCode.INFEASIBLE if infeasible else ExitCode.LIMIT)
