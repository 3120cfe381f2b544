"""`slo-opt gap`: how far each scheduler is from the certified bound, load by load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import (
    Format,
    InputFormat,
    OnUnservable,
    Printed,
    Quiet,
    ScoreRuleName,
    Seed,
    UnservablePolicy,
    Window,
)
from slo_opt.cli.sweep import (
    DEFAULT_POLICIES,
    Acceptance,
    DataDir,
    Jobs,
    Lengths,
    Noise,
    Plot,
    RayAddress,
    Results,
    Resume,
    Slowdown,
)
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import POLICIES

if TYPE_CHECKING:
    from slo_opt.analysis.capacity import CapacityRequest
    from slo_opt.analysis.gap_source import GapSource

DEFAULT_LOADS = "0.6,0.8,1,1.2,1.4"
_OF_A_TRACE = ("scales", "input_format", "window", "unservable")
_OF_A_WORKLOAD = ("loads", "rate", "reference", "target", "duration", "data")
_OF_A_SEARCH = ("reference", "target")
_REFERENCE = "slo-opt"


def parse_loads(text: str, option: str) -> tuple[float, ...]:
    """Read a comma list of factors above 0.

    Raises
    ------
    InvalidInputError
        It is anything else.
    """
    from slo_opt.cli.sweep import parse_names
    from slo_opt.domain.errors import InvalidInputError

    try:
        loads = tuple(dict.fromkeys(map(float, parse_names(text, option))))
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        loads = ()
    if not loads or not all(0 < load <= 1e6 for load in loads):
        raise InvalidInputError(f"{option} {text}: expected factors above 0, for example {DEFAULT_LOADS}")
    return loads


def gap(
    context: typer.Context,
    trace: Annotated[
        str | None, typer.Argument(help="Trace file; without one, a named workload: --scenario.", metavar="[TRACE]")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Named workload, see `capacity`; with TRACE, SLOs for a file that has none.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Engine model, see `capacity`; default with TRACE: its own.")
    ] = None,
    policies: Annotated[str, typer.Option(help=f"Comma list of {', '.join(POLICIES)}.")] = DEFAULT_POLICIES,
    loads: Annotated[str, typer.Option(help="Comma list of multiples of --rate.")] = DEFAULT_LOADS,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second at load 1; default: the capacity of --reference.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Policy whose capacity, found first, is load 1.")] = _REFERENCE,
    target: Annotated[float, typer.Option(help="Attainment target of that capacity.")] = 0.9,
    scales: Annotated[str, typer.Option(help="With TRACE: comma list of arrival-rate factors.")] = "1",
    duration: Annotated[float, typer.Option(help="Seconds of arrivals of a named workload.")] = 300.0,
    data: DataDir = None,
    input_format: InputFormat = None,
    window: Window = None,
    unservable: OnUnservable = UnservablePolicy.LOSE,
    score_rule: ScoreRuleName = None,
    seed: Seed = 0,
    lengths: Lengths = LENGTHS[0],
    default_settings: Annotated[
        bool, typer.Option("--default-settings", help="Run policies at their default setting, not at their best.")
    ] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for each bound.")] = 60.0,
    class_bounds: Annotated[
        bool, typer.Option("--class-bounds", help="Bound each SLO class by a solve of its own.")
    ] = False,
    noise: Noise = 0.0,
    slowdown: Slowdown = 1.0,
    acceptance: Acceptance = 0.0,
    jobs: Jobs = None,
    ray: RayAddress = None,
    output: Results = None,
    resume: Resume = False,
    output_format: Printed = Format.TABLE,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Compare what online policies attain with the bound that no schedule can exceed.

    Prints a table (or one JSON object): at each load the bound, and the share of it that each policy attains, in all
    and by SLO class. A run that exceeds its bound stops the command: then a model is wrong.
    """
    from slo_opt.analysis.gap import GapRequest
    from slo_opt.analysis.gap_table import gap_document
    from slo_opt.cli.inputs import refuse_given
    from slo_opt.cli.progress import progress
    from slo_opt.cli.sweep import (
        check_files,
        interruptible,
        leave_interrupted,
        make_pool,
        parse_names,
        say_what_is_kept,
        stage,
    )
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.policies.registry import prepare
    from slo_opt.simulate.pool import run_tasks
    from slo_opt.simulate.results_file import ResultsFile
    from slo_opt.simulate.simulator import SimulationOptions

    names = parse_names(policies, "--policies")
    factors = parse_loads(loads, "--loads") if trace is None else parse_loads(scales, "--scales")
    simulation = SimulationOptions(seed, noise, slowdown, acceptance)
    first: CapacityRequest | None = None
    if trace is None:
        if scenario is None or engine is None:
            raise InvalidInputError("name a trace file, or a workload with --scenario and --engine")
        refuse_given(context, _OF_A_TRACE, "only with a TRACE; the load of a named workload is --rate times --loads")
        if rate is not None:
            refuse_given(context, _OF_A_SEARCH, "only where load 1 is searched for; leave it out, or leave --rate out")
        else:
            first = _capacity_request(scenario, engine, reference, target, duration, data, lengths, score_rule)
        source = _scenario_source(scenario, engine, 1.0 if rate is None else rate, duration, seed, data, score_rule)
    else:
        refuse_given(context, _OF_A_WORKLOAD, "only without a TRACE, of which --scales sets the load")
        source = _trace_source(trace, engine, scenario, input_format, window, seed, score_rule, unservable)

    def request_on(source: "GapSource") -> GapRequest:
        return GapRequest(source, factors, names, lengths, simulation, not default_settings, time_limit, class_bounds)

    request = request_on(source)  # refuses what is wrong before anything runs
    request.tasks()
    check_files(output, resume, plot)
    pool = make_pool(jobs, ray)
    tasks = request.tasks()
    document: dict[str, Any] = {"loads": []}
    with ResultsFile(output, must_exist=resume) as results:
        with interruptible(results) as stopped, progress(quiet) as report:
            prepare(names if first is None else (*names, reference), report)  # not in every process at once
            if first is not None:
                task = first.task(scenario or "", engine or "", reference, seed)
                found = run_tasks([task], pool, results, stage(report, "capacity"))[0]["rate"]
                if not found:
                    raise InvalidInputError(f"{reference} attains {target:g} at no rate; give one with --rate")
                request = request_on(
                    _scenario_source(scenario or "", engine or "", found, duration, seed, data, score_rule)
                )
                tasks = request.tasks()
            say_what_is_kept(results, tasks)
            run_tasks(tasks, pool, results, report)
            run_tasks(request.class_tasks(results.results), pool, results, stage(report, "classes"))
        document = gap_document(request, results.results)
    if document["loads"] or not stopped:
        _print(document, output_format)
    if stopped:
        leave_interrupted(results, tasks)
    if plot is not None:
        _draw(plot, document)


def _capacity_request(
    scenario: str,
    engine: str,
    reference: str,
    target: float,
    duration: float,
    data: Path | None,
    lengths: str,
    score_rule: str | None,
) -> "CapacityRequest":
    from slo_opt.analysis.capacity import CapacityRequest
    from slo_opt.cli.inputs import score_rule_named
    from slo_opt.domain.slo import ScoreRule
    from slo_opt.simulate.capacity import CapacityOptions

    rule = score_rule_named(score_rule) or ScoreRule.DSLO
    options = CapacityOptions(target=target, lengths=lengths)
    return CapacityRequest((scenario,), (engine,), (reference,), 1, duration, data, rule, options)


def _scenario_source(
    scenario: str, engine: str, rate: float, duration: float, seed: int, data: Path | None, score_rule: str | None
) -> "GapSource":
    from slo_opt.analysis.gap_source import ScenarioSource
    from slo_opt.cli.inputs import score_rule_named
    from slo_opt.domain.slo import ScoreRule

    rule = score_rule_named(score_rule) or ScoreRule.DSLO
    return ScenarioSource(scenario, engine, rate, duration, seed, data, rule)


def _trace_source(
    trace: str,
    engine: str | None,
    scenario: str | None,
    input_format: str | None,
    window: str | None,
    seed: int,
    score_rule: str | None,
    unservable: UnservablePolicy,
) -> "GapSource":
    from slo_opt.analysis.gap_source import TraceSource
    from slo_opt.cli.inputs import parse_window, score_rule_named
    from slo_opt.domain.errors import InvalidInputError

    if trace == "-":
        raise InvalidInputError("gap reads the trace once a load and policy; give a file, not -")
    rule, span = score_rule_named(score_rule), parse_window(window)
    return TraceSource(Path(trace), engine, scenario, input_format, span, seed, rule, unservable.value)


def _print(document: dict[str, Any], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.gap import gap_tables

    show(gap_tables(document))


def _draw(path: Path, document: dict[str, Any]) -> None:
    from slo_opt.report.gap_map import draw_gap
    from slo_opt.traces.atomic import write_atomic

    write_atomic(path, lambda temporary: draw_gap(document, temporary))
