"""`slo-opt replay`: drive a live server with a trace, and score it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import (
    BestEffort,
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
from slo_opt.replay.count_by import CountBy
from slo_opt.replay.slo_fields import SloFields

if TYPE_CHECKING:
    from slo_opt.replay.result import ReplayRun


def replay(
    trace: TraceFile,
    url: Annotated[str, typer.Option(help="The server, for example http://localhost:8000.")],
    model: Annotated[str | None, typer.Option(help="Name of the model; default: the first that is offered.")] = None,
    label: Annotated[str, typer.Option(help="What serves there, for the record.")] = "live",
    engine: Engine = None,
    scenario: ScenarioName = None,
    input_format: InputFormat = None,
    window: Window = None,
    scale: Scale = 1.0,
    score_rule: ScoreRuleName = None,
    unservable: OnUnservable = UnservablePolicy.LOSE,
    best_effort: BestEffort = 0.0,
    seed: Seed = 0,
    slo_fields: Annotated[
        SloFields, typer.Option(help="Where SLOs are written; limits is xargs without the class.")
    ] = SloFields.XARGS,
    priority_by_slo: Annotated[
        bool, typer.Option("--priority-by-slo", help="Send a priority by the TPOT of the class.")
    ] = False,
    count_by: Annotated[CountBy, typer.Option(help="How the tokens of a stream are told.")] = CountBy.TOKEN_IDS,
    vocab_size: Annotated[int, typer.Option(help="Token ids of prompts are below this.")] = 1000,
    warmup: Annotated[int, typer.Option(help="Requests sent one by one before the first, not scored.")] = 0,
    max_concurrency: Annotated[int, typer.Option(help="Calls under way at once, at most.")] = 900,
    timeout: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 600.0,
    max_lateness: Annotated[float, typer.Option(help="Milliseconds that 99 % of the calls may be sent late.")] = 50.0,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    output_format: Printed = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Add one JSON line to this file; - for stdout.")
    ] = None,
    save_tokens: Annotated[
        Path | None, typer.Option(help="Write when each token of each request came here, as JSON lines.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Send the requests of a trace to an OpenAI-compatible server at their times, and score what comes back.

    Prompts are random token ids of the lengths in the trace. Prints a table (or one JSON object) in the terms of
    `simulate`: attainment, latencies and goodput by SLO class, and how faithful the load was.
    """
    from slo_opt.cli.inputs import parse_window, read_instance, score_rule_named
    from slo_opt.cli.progress import progress
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.replay import run as replays
    from slo_opt.replay.server import base_url, require_aiohttp
    from slo_opt.report.replay_document import replay_document
    from slo_opt.traces.atomic import append_line, is_stdout

    span, rule = parse_window(window), score_rule_named(score_rule)
    options = replays.ReplayOptions(
        model=model,
        slo_fields=slo_fields,
        priority_by_slo=priority_by_slo,
        count_by=count_by,
        seed=seed,
        vocab_size=vocab_size,
        warmup=warmup,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_lateness_s=max_lateness / 1e3,
        api_key_env=api_key_env,
    )
    base_url(url)
    require_aiohttp()
    _check_outputs(output, save_tokens)
    with progress(quiet) as report:
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
        run = replays.replay(instance, url, options, report=report)
    document = replay_document(run, origin, label)
    try:
        if output is not None:
            append_line(output, _line(document))
        if save_tokens is not None:
            _save(save_tokens, run)
    finally:
        if not any(path is not None and is_stdout(path) for path in (output, save_tokens)):
            _print(document, output_format)
    if run.cut:
        raise KeyboardInterrupt
    if not any(served.tokens_s for served in run.requests) and document["failed"]:
        raise InvalidInputError(f"{url} served no request: {document['failed'][0]['cause']}")


def _check_outputs(output: Path | None, save_tokens: Path | None) -> None:
    """Refuse what cannot be written before anything is sent."""
    from slo_opt.cli.output import check_writable, same_file
    from slo_opt.report.replay_document import check_appendable
    from slo_opt.traces.atomic import is_stdout

    files = [path for path in (output, save_tokens) if path is not None]
    for path in files:
        if not is_stdout(path):
            check_writable(path)
    if output is not None and not is_stdout(output):
        check_appendable(output)
    if len(files) == 2 and same_file(*files):
        raise typer.BadParameter(f"-o and --save-tokens would both write {output}; choose different names")


def _line(fields: Any) -> bytes:
    import json

    return json.dumps(fields, allow_nan=False).encode()


def _save(path: Path, run: "ReplayRun") -> None:
    from slo_opt.traces.atomic import write_bytes

    write_bytes(path, b"".join(_line(row) + b"\n" for row in run.token_rows()))


def _print(document: dict[str, Any], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json({"schema": "slo-opt-replay", "schema_version": 1, "runs": [document]})
        return
    from slo_opt.cli.console import show
    from slo_opt.report.replay import replay_tables

    show(replay_tables(document))
