"""`slo-opt calibrate`: an engine model from measured batches."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import Format, Printed, Quiet

if TYPE_CHECKING:
    from slo_opt.domain.engine import EngineModel
    from slo_opt.engine_bridge.batch_sample import BatchSample
    from slo_opt.engine_bridge.calibrate import Calibration

_LIMITS = ("max_num_batched_tokens", "max_num_seqs", "max_model_len", "kv_blocks")


def calibrate(
    context: typer.Context,
    logs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[STEPS]...", help="Step logs of a live engine (JSONL, plain or gzip)."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Instead: drive the OpenAI-compatible server at this address for a minute.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the engine here, for --engine; - for stdout.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the engine; default: calibrated.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine to begin with: what the batches do not tell stays in proportion to it."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Of the engine, where the log or server does not tell.", min=1, max=1 << 24)
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="The same: requests a batch.", min=1, max=1 << 24)] = None,
    max_model_len: Annotated[int | None, typer.Option(help="The same: tokens a request.", min=1, max=1 << 30)] = None,
    kv_blocks: Annotated[int | None, typer.Option(help="The same: blocks of the KV cache.", min=1, max=1 << 40)] = None,
    repeats: Annotated[int, typer.Option(help="With --url: times that each prompt is sent.", min=1, max=100)] = 3,
    output_format: Printed = Format.TABLE,
    plot: Annotated[Path | None, typer.Option(help="Draw measured against fitted here (png, svg, pdf).")] = None,
    quiet: Quiet = False,
) -> None:
    """Fit the engine model to batches that were run, and write it for --engine.

    From the step logs of a live engine, or from the times at which a server's tokens come. Prints what was measured
    against what was fitted, batch kind by batch kind.
    """
    from slo_opt.cli.inputs import refuse_given
    from slo_opt.engine_bridge.calibrate import calibrate as fit
    from slo_opt.report.calibration import calibration_document
    from slo_opt.traces.atomic import is_stdout, write_bytes
    from slo_opt.traces.engine_file import encode_engine, engine_from

    if (url is None) == (not logs):
        raise typer.BadParameter("give step logs, or --url of a server to measure; one of the two")
    if url is None:
        refuse_given(context, ("repeats",), "only with --url; step logs are fitted as they are")
    _check_outputs(output, plot)
    template = None if engine is None else engine_from(engine)
    limits: dict[str, Any] = {key: value for key in _LIMITS if (value := context.params[key]) is not None}
    facts: dict[str, Any] = {}
    if url is None:
        samples, template, facts = _from_logs(logs or [], template, limits)
    else:
        samples, template, facts = _from_server(url, template, limits, repeats, quiet)
    found = fit(samples, template, name=name or facts.pop("name", None) or "calibrated")
    facts.pop("name", None)
    document = calibration_document(found, **facts)
    if output is not None:
        write_bytes(output, encode_engine(found.fit.engine))
    if output is None or not is_stdout(output):
        _print(document, output_format)
    if plot is not None:
        _draw(plot, found)


def _check_outputs(output: Path | None, plot: Path | None) -> None:
    from slo_opt.cli.output import check_writable, same_file
    from slo_opt.report.figure import require_matplotlib
    from slo_opt.traces.atomic import is_stdout

    if plot is not None:
        require_matplotlib(plot)
        check_writable(plot)
    if output is not None and not is_stdout(output):
        check_writable(output)
        if plot is not None and same_file(output, plot):
            raise typer.BadParameter(f"-o and --plot would both write {plot}; choose different names")


def _from_logs(
    logs: list[Path], template: "EngineModel | None", limits: dict[str, Any]
) -> "tuple[list[BatchSample], EngineModel, dict[str, Any]]":
    """Batches of all logs; limits of the engine from the last that tells them."""
    from dataclasses import replace

    from slo_opt.engine_bridge.calibrate import GENERIC
    from slo_opt.engine_bridge.step_log import read_steps

    samples: list[BatchSample] = []
    notes: list[str] = []
    told: EngineModel | None = None
    releases = set()
    for path in logs:
        records = read_steps(path)
        samples += records.samples
        if records.warning is not None:
            notes.append(records.warning)
        if records.engine is not None:
            if told is not None and _limits(told) != _limits(records.engine):
                notes.append(f"{path}: its engine has other limits than the log before; are they of one engine?")
            told = records.engine
        releases.add(records.vllm)
    begin = template or told or GENERIC
    if told is not None:
        begin = replace(begin, **_limits(told))
    elif template is None and len(limits) < len(_LIMITS):
        notes.append("the log does not tell the limits of the engine; check them in the file that is written")
    source = ", ".join(path.name for path in logs)
    known = sorted(release for release in releases if release)
    return (
        samples,
        replace(begin, **limits),
        {"source": f"{source} (served by {', '.join(known)})" if known else source, "notes": notes},
    )


def _limits(engine: "EngineModel") -> dict[str, Any]:
    return {key: getattr(engine, key) for key in (*_LIMITS, "block_size_tokens")}


def _from_server(
    url: str, template: "EngineModel | None", limits: dict[str, Any], repeats: int, quiet: bool
) -> "tuple[list[BatchSample], EngineModel, dict[str, Any]]":
    """Batches as a client sees them; limits as the server tells them."""
    import asyncio
    from dataclasses import asdict, replace

    from slo_opt.cli.progress import progress
    from slo_opt.engine_bridge.calibrate import GENERIC
    from slo_opt.engine_bridge.calibrate_probes import overhead_s, samples_of
    from slo_opt.engine_bridge.calibrate_server import (
        DEFAULT_BATCHED_TOKENS,
        ServerFacts,
        Sweep,
        probe_server,
        sweep_for,
    )

    begin = template or replace(GENERIC, max_num_batched_tokens=DEFAULT_BATCHED_TOKENS)
    notes: list[str] = []
    if template is None and "max_num_batched_tokens" not in limits:
        notes.append(
            f"a server does not tell its max_num_batched_tokens; {DEFAULT_BATCHED_TOKENS} is assumed, "
            "--max-num-batched-tokens sets it"
        )

    def with_facts(facts: ServerFacts) -> "EngineModel":
        told = {key: getattr(facts, key) for key in ("max_model_len", "kv_blocks", "block_size_tokens")}
        return replace(begin, **{**{key: value for key, value in told.items() if value is not None}, **limits})

    def make_sweep(facts: ServerFacts) -> Sweep:
        engine = with_facts(facts)
        held = None if facts.kv_blocks is None else engine.kv_blocks * engine.block_size_tokens
        return sweep_for(
            engine.max_num_batched_tokens, engine.max_model_len, engine.max_num_seqs, held, repeats=repeats
        )

    with progress(quiet) as report:
        facts, probes = asyncio.run(probe_server(url, make_sweep, report=report))
    if facts.kv_blocks is None and "kv_blocks" not in limits:
        notes.append("the server does not tell its KV blocks; the file holds a number that never binds")
    details = {"source": url, "server": asdict(facts), "overhead_s": overhead_s(probes), "notes": notes}
    return samples_of(probes), with_facts(facts), {**details, "name": facts.model.rstrip("/").rpartition("/")[2]}


def _print(document: dict[str, Any], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.calibration import calibration_tables

    show(calibration_tables(document))


def _draw(path: Path, found: "Calibration") -> None:
    from slo_opt.report.calibration_plot import draw_calibration
    from slo_opt.traces.atomic import write_atomic

    write_atomic(path, lambda temporary: draw_calibration(found, temporary))
