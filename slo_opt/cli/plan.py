"""`slo-opt plan`: the least fleet for a trace, proved and simulated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import (
    Format,
    InputFormat,
    Printed,
    Quiet,
    Scale,
    ScenarioName,
    ScoreRuleName,
    Seed,
    Window,
)
from slo_opt.cli.sweep import Jobs, Lengths, Plot, RayAddress, Results, Resume
from slo_opt.domain.engines import ENGINES
from slo_opt.policies.lengths import LENGTHS

if TYPE_CHECKING:
    from slo_opt.analysis.fleet_promise import Promise
    from slo_opt.analysis.fleet_request import Offer, Pair

DEFAULT_PAIRS = "vllm-fcfs+round-robin,slos-serve+slos-serve,polyserve+polyserve,slo-opt+slo-opt"
_OF_A_DAY = ("day", "day_length")
_OF_COUNTS = ("policies", "lengths", "all_settings")


def parse_attainment(text: str) -> "Promise":
    """Read a share, or a comma list of ``CLASS=SHARE``.

    Raises
    ------
    InvalidInputError
        It is anything else, or a share is not in (0, 1].
    """
    from slo_opt.analysis.fleet_promise import Promise
    from slo_opt.domain.errors import InvalidInputError

    try:
        if "=" not in text:
            return Promise(overall=float(text))
        parts = [part.rpartition("=") for part in text.split(",")]
        return Promise(classes=tuple((name.strip(), float(share)) for name, _, share in parts))
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"--attainment {text}: expected a share in (0, 1], for example 0.99, or chat=0.99,code=0.95"
        ) from None


def parse_offer(text: str) -> "Offer":
    """Read ``ENGINE`` or ``ENGINE=PRICE``.

    Raises
    ------
    InvalidInputError
        The engine is unknown, or the price is no number above 0.
    """
    from slo_opt.analysis.fleet_request import Offer
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.traces.engine_file import engine_from

    name, equals, price = text.rpartition("=")
    name = name if equals else text
    engine_from(name)
    try:
        return Offer(name, float(price)) if equals else Offer(name)
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"--engine {text}: {price!r} is no price; expected ENGINE=PRICE, for example llama-3-8b-a100=1.8"
        ) from None


def parse_pairs(text: str) -> "tuple[Pair, ...]":
    """Read a comma list of ``POLICY+ROUTER``.

    Raises
    ------
    InvalidInputError
        It names none, or an entry names no router; unknown names.
    """
    from slo_opt.analysis.fleet_request import Pair
    from slo_opt.cli.sweep import parse_names
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.policies.registry import policy_entry
    from slo_opt.routing.registry import ROUTERS, router_entry

    pairs = []
    for name in parse_names(text, "--policies"):
        policy, plus, router = name.partition("+")
        policy_entry(policy)
        if not plus:
            raise InvalidInputError(
                f"--policies {name}: names no router; expected POLICY+ROUTER, for example {name}+round-robin. Routers: "
                f"{', '.join(ROUTERS)}"
            )
        router_entry(router)
        pairs.append(Pair(policy, router))
    return tuple(pairs)


def plan(
    context: typer.Context,
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Trace file, plain or gzip.")],
    attainment: Annotated[
        str, typer.Option(metavar="SHARE", help="Share of the requests to attain: 0.99, or chat=0.99,code=0.95.")
    ],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PRICE]",
            help=f"Engine type and price an hour, repeatable: {', '.join(ENGINES)}, or a file; default: the trace's.",
        ),
    ] = None,
    policies: Annotated[
        str, typer.Option(metavar="LIST", help="Comma list of POLICY+ROUTER whose fleets are sized by simulation.")
    ] = DEFAULT_PAIRS,
    bound_only: Annotated[bool, typer.Option("--bound-only", help="Prove, do not simulate.")] = False,
    stress: Annotated[
        bool, typer.Option("--stress", help="Again with longer requests, higher rate and slower batches.")
    ] = False,
    scenario: ScenarioName = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    score_rule: ScoreRuleName = None,
    curve: Annotated[
        Path | None, typer.Option(help="Rate curve (CSV: t_s,rate_rps): the trace is played along a day of it.")
    ] = None,
    day: Annotated[int, typer.Option(help="Which day of the curve, from 0.", min=0)] = 0,
    day_length: Annotated[float, typer.Option(help="Seconds in which that day passes.")] = 86_400.0,
    period: Annotated[
        float | None, typer.Option(help="Seconds after which a fleet may change: bounds period by period.")
    ] = None,
    max_replicas: Annotated[int, typer.Option(help="Most replicas of an engine type.", min=1)] = 512,
    time_limit: Annotated[float, typer.Option(help="Seconds for each bound.")] = 300.0,
    lengths: Lengths = LENGTHS[0],
    all_settings: Annotated[
        bool, typer.Option("--all-settings", help="Best static setting of policy and router, not the default.")
    ] = False,
    seed: Seed = 0,
    jobs: Jobs = None,
    ray: RayAddress = None,
    output: Results = None,
    resume: Resume = False,
    output_format: Printed = Format.TABLE,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Find how many replicas the traffic needs at least, and how many each scheduler and router needs.

    Prints a table (or one JSON object): the fleet that is proved to be needed by any scheduler, the least fleet with
    which each pair of scheduler and router keeps the promise, the ratio between them; over time and under stress.
    """
    from slo_opt.analysis.fleet_plan import bound_tasks, count_tasks, plan_document, run_plan
    from slo_opt.analysis.fleet_request import Offer, PlanRequest
    from slo_opt.analysis.fleet_source import Day, FleetSource
    from slo_opt.analysis.fleet_stress import AS_IS, STRESSES
    from slo_opt.analysis.gap_source import TraceSource
    from slo_opt.cli.inputs import parse_window, refuse_given, score_rule_named
    from slo_opt.cli.progress import progress
    from slo_opt.cli.sweep import check_files, interruptible, leave_interrupted, make_pool
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.policies.registry import prepare
    from slo_opt.routing.registry import prepare_routers
    from slo_opt.simulate.pool import run_tasks
    from slo_opt.simulate.results_file import ResultsFile

    if trace == "-":
        raise InvalidInputError("plan reads the trace once a bound and policy; give a file, not -")
    if curve is None:
        refuse_given(context, _OF_A_DAY, "only with --curve, of which it takes a day")
    if bound_only:
        refuse_given(context, _OF_COUNTS, "only without --bound-only: it is about simulated fleets")
    offers = tuple(parse_offer(text) for text in engine or ()) or (Offer(None),)
    source = TraceSource(
        Path(trace),
        offers[0].engine,
        scenario,
        input_format,
        parse_window(window),
        seed,
        score_rule_named(score_rule),
        "lose",
    )
    request = PlanRequest(
        source=FleetSource(source, scale, None if curve is None else Day(curve, day, day_length)),
        promise=parse_attainment(attainment),
        offers=offers,
        pairs=() if bound_only else parse_pairs(policies),
        stresses=STRESSES if stress else (AS_IS,),
        lengths=lengths,
        limit=max_replicas,
        period_s=period if period is not None or curve is None else 3600.0,
        time_limit_s=time_limit,
        seed=seed,
        all_settings=all_settings,
    )
    check_files(output, resume, plot)
    pool = make_pool(jobs, ray)
    document: dict[str, Any] | None = None
    with ResultsFile(output, must_exist=resume) as results:
        with interruptible(results) as stopped, progress(quiet) as report:
            instance = request.instance()
            request.promise.targets(instance)  # refuses a class that is not there
            document = plan_document(request, instance, results.results)
            prepare([pair.policy for pair in request.pairs], report)  # here, not in every process at once
            prepare_routers([pair.router for pair in request.pairs], report)
            run_plan(request, instance, results.results, lambda tasks: run_tasks(tasks, pool, results, report))
        if document is not None:
            document = plan_document(request, instance, results.results)
            _print(document, output_format)
        if stopped:
            tasks = [] if document is None else bound_tasks(request, instance)
            leave_interrupted(results, tasks + (count_tasks(request, instance, results.results) if tasks else []))
    assert document is not None
    if plot is not None:
        _draw(plot, document)
    _exit(document)


def _print(document: dict[str, Any], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.fleet import fleet_tables

    show(fleet_tables(document))


def _draw(path: Path, document: dict[str, Any]) -> None:
    """The fleet over time where there are periods, else fleets side by side."""
    from slo_opt.report.fleet_bars import draw_fleet_bars
    from slo_opt.report.fleet_over_time import draw_fleet
    from slo_opt.traces.atomic import write_atomic

    draw = draw_fleet_bars if document["over_time"] is None else draw_fleet
    write_atomic(path, lambda temporary: draw(document, temporary))


def _exit(document: dict[str, Any]) -> None:
    """Leave with a code other than 0 where no fleet keeps the promise."""
    from slo_opt.cli.exits import ExitCode
    from slo_opt.report.fleet import fleet_verdict

    bound = document["stresses"][0]["bound"]
    if bound["counts"] is None:
        typer.echo(f"slo-opt: {fleet_verdict(document).plain}", err=True)
        raise typer.Exit(ExitCode.INFEASIBLE)
