"""`slo-opt simulate`: what a scheduler reaches on a trace."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slo_opt.cli.options import (
    BestEffort,
    Engine,
    Format,
    InputFormat,
    OnUnservable,
    Printed,
    Quiet,
    Replicas,
    Scale,
    ScenarioName,
    ScoreRuleName,
    Seed,
    TraceFile,
    UnservablePolicy,
    Window,
)
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import POLICIES
from slo_opt.routing.registry import ROUTERS

if TYPE_CHECKING:
    from slo_opt.analysis.fleet_facts import FleetFacts
    from slo_opt.analysis.runs import RunRecord, Value
    from slo_opt.simulate.run import Run
    from slo_opt.simulate.simulator import SimulationOptions

DEFAULT_POLICY = "slo-opt"
DEFAULT_ROUTER = "slo-opt"
_OF_A_FLEET = ("router", "router_set", "report_every")
_OF_ONE_REPLICA = ("prefix_cache", "plan", "plot")


def parse_policies(text: str) -> tuple[str, ...]:
    """Read a comma list of policies.

    Raises
    ------
    InvalidInputError
        It names none, or one that does not exist.
    """
    from slo_opt.cli.inputs import names_in
    from slo_opt.policies.registry import CATALOGUE

    return names_in(text, CATALOGUE)


def parse_setting(pairs: list[str], option: str = "--set") -> "dict[str, Value]":
    """Read ``key=value`` pairs: a number, true, false, none, or text.

    Raises
    ------
    InvalidInputError
        A pair has no ``=`` or no key, or a key occurs twice.
    """
    from slo_opt.domain.errors import InvalidInputError

    setting: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InvalidInputError(f"{option} {pair}: expected KEY=VALUE, for example budget_tokens=512")
        if key in setting:
            raise InvalidInputError(f"{option} {pair}: {key} is set twice")
        setting[key] = _value(text.strip())
    return setting


def _value(text: str) -> "Value":
    words: dict[str, Value] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def simulate(
    context: typer.Context,
    trace: TraceFile,
    policy: Annotated[
        str, typer.Option(help=f"Comma list of policies, one run each: {', '.join(POLICIES)}.")
    ] = DEFAULT_POLICY,
    engine: Engine = None,
    scenario: ScenarioName = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    score_rule: ScoreRuleName = None,
    unservable: OnUnservable = UnservablePolicy.ERROR,
    best_effort: BestEffort = 0.0,
    lengths: Annotated[
        str, typer.Option(help=f"What policies know of output lengths: {', '.join(LENGTHS)}.")
    ] = LENGTHS[0],
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the policies; repeatable.")
    ] = None,
    replicas: Replicas = None,
    router: Annotated[
        str, typer.Option(help=f"Comma list of routers before the fleet, one run each: {', '.join(ROUTERS)}.")
    ] = DEFAULT_ROUTER,
    router_set: Annotated[
        list[str] | None, typer.Option("--router-set", metavar="KEY=VALUE", help="Setting of the routers; repeatable.")
    ] = None,
    report_every: Annotated[
        float, typer.Option(help="Seconds between reports of replicas to the router; 0: it sees them as they are.")
    ] = 0.0,
    seed: Seed = 0,
    noise: Annotated[float, typer.Option(help="Spread (sigma of the logarithm) of a factor on batch times.")] = 0.0,
    slowdown: Annotated[
        float, typer.Option(help="Factor on all batch times that policies do not know of: 1.1 is 10 % slower.")
    ] = 1.0,
    acceptance: Annotated[
        float, typer.Option(help="Give the engine a draft model: chance that a drafted token is accepted.")
    ] = 0.0,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache", help="Let prompts that begin alike find KV blocks of one another.")
    ] = False,
    output_format: Printed = Format.TABLE,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Add one JSON line a run to this file, for `compare`; - for stdout."),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Write the schedule of the run here, for `explain`.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw load and attainment over time here (png, svg, pdf).")] = None,
    quiet: Quiet = False,
) -> None:
    """Serve a trace with one or several online policies on the engine model, batch by batch.

    Prints a table (or one JSON object): what each policy attained, its latencies and its use of the engine. Every
    schedule is replayed by the independent checker first.
    """
    from slo_opt.analysis.plan import encode_plan
    from slo_opt.analysis.runs import record_of
    from slo_opt.cli.fleet_options import FleetAsked, parse_routers
    from slo_opt.cli.inputs import about, parse_window, read_instance, refuse_given, score_rule_named
    from slo_opt.cli.progress import progress
    from slo_opt.policies.lengths import make_lengths
    from slo_opt.policies.registry import PolicyContext, make_policy, prepare
    from slo_opt.routing.registry import prepare_routers
    from slo_opt.simulate.play import play
    from slo_opt.simulate.simulator import SimulationOptions
    from slo_opt.traces.atomic import append_line, is_stdout, write_bytes
    from slo_opt.traces.unservable import check_attainable

    policies, values = parse_policies(policy), parse_setting(setting or [])
    routers, router_values = parse_routers(router), parse_setting(router_set or [], "--router-set")
    refuse_given(
        context,
        _OF_A_FLEET if replicas is None else _OF_ONE_REPLICA,
        "only with --replicas" if replicas is None else "only for one replica; leave --replicas out",
    )
    span, rule = parse_window(window), score_rule_named(score_rule)
    options = SimulationOptions(seed, noise, slowdown, acceptance, prefix_cache=prefix_cache)
    fleet = None if replicas is None else FleetAsked(replicas, routers, router_values, report_every, options)
    plots = _plots(plot, policies)
    _check_outputs(output, plan, plots, policies, options)
    records: list[RunRecord] = []
    try:
        with progress(quiet) as report_progress:
            instance, origin = read_instance(
                trace,
                engine=engine,
                scenario=scenario,
                input_format=input_format,
                window=span,
                scale=scale,
                seed=seed,
                score_rule=rule,
                unservable=unservable.value,
                best_effort=best_effort,
            )
            if not (acceptance or prefix_cache):
                with about(trace):
                    check_attainable(instance)
            for name in policies:  # a setting that one of them refuses is refused before any run
                knowledge = make_lengths(lengths, instance)
                make_policy(name, PolicyContext(instance.engine, instance.slo_classes, knowledge), values)
            if fleet is not None:
                fleet.check(instance)
                prepare_routers(routers, report_progress)
            prepare(policies, report_progress)
            pairs = [(name, chosen) for name in policies for chosen in (routers if fleet is not None else ("",))]
            for number, (name, chosen) in enumerate(pairs):
                if report_progress is not None:
                    report_progress(f"serving with {name}{f' behind {chosen}' if chosen else ''}", number / len(pairs))
                began_s = time.perf_counter()
                run: Run
                facts: FleetFacts | None = None
                if fleet is None:
                    run = play(instance, name, values, lengths, options)
                else:
                    run, facts = fleet.serve(instance, chosen, name, values, lengths)
                wall_s = time.perf_counter() - began_s
                record = record_of(
                    run, setting=values, lengths=lengths, origin=origin, options=options, wall_s=wall_s, fleet=facts
                )
                records.append(record)
                if output is not None:
                    append_line(output, record.encode())
                if plan is not None:
                    write_bytes(plan, encode_plan(record.to_dict(), instance, run.schedule))
                if plot is not None:
                    _draw(plots[number], run)
    finally:
        # What ran is not lost to what failed after it.
        if records and not any(path is not None and is_stdout(path) for path in (output, plan)):
            _print(records, output_format)


def _plots(plot: Path | None, policies: tuple[str, ...]) -> list[Path]:
    """One picture a policy: the file as named, or with several policies one beside it for each."""
    if plot is None:
        return []
    if len(policies) == 1:
        return [plot]
    return [plot.with_name(f"{plot.stem}-{name}{plot.suffix}") for name in policies]


def _check_outputs(
    output: Path | None, plan: Path | None, plots: list[Path], policies: tuple[str, ...], options: "SimulationOptions"
) -> None:
    """Refuse what cannot be written before any run."""
    from slo_opt.analysis.runs import check_appendable
    from slo_opt.cli.output import check_writable, same_file
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.report.figure import require_matplotlib
    from slo_opt.traces.atomic import is_stdout

    for path in plots:
        require_matplotlib(path)
    files = [path for path in (output, plan, *plots) if path is not None]
    for path in files:
        if not is_stdout(path):
            check_writable(path)
    for number, path in enumerate(files):
        if any(same_file(path, other) for other in files[:number]):
            raise typer.BadParameter(f"-o, --plan and --plot would both write {path}; choose different names")
    if plan is not None and len(policies) > 1:
        raise typer.BadParameter("--plan holds the schedule of one run; name one policy")
    if plan is not None and (options.noise or options.slowdown != 1 or options.acceptance or options.prefix_cache):
        raise InvalidInputError(
            "--plan: explain argues with the engine model; leave out --noise, --slowdown, --acceptance, --prefix-cache"
        )
    if output is not None and not is_stdout(output):
        check_appendable(output)


def _draw(path: Path, run: "Run") -> None:
    from slo_opt.report.load import draw_load
    from slo_opt.traces.atomic import write_atomic

    write_atomic(path, lambda temporary: draw_load(run, temporary))


def _print(records: "list[RunRecord]", output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        document = {"schema": "slo-opt-simulate", "schema_version": 1, "runs": [item.to_dict() for item in records]}
        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.runs import simulate_tables

    show(simulate_tables(records))
