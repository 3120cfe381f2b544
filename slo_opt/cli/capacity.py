"""`slo-opt capacity`: how many requests a second each scheduler serves on time."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from slo_opt.cli.options import Format, Printed, Quiet, ScoreRuleName
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
from slo_opt.domain.engines import ENGINES
from slo_opt.policies.lengths import LENGTHS
from slo_opt.policies.registry import POLICIES

if TYPE_CHECKING:
    from pathlib import Path


def capacity(
    scenario: Annotated[
        str,
        typer.Option(help="Comma list of chatbot, coder, summarizer, mixed, toolllm, reasoning, polyserve, qoserve."),
    ],
    engine: Annotated[str, typer.Option(help=f"Comma list of {', '.join(ENGINES)}.")],
    policies: Annotated[str, typer.Option(help=f"Comma list of {', '.join(POLICIES)}.")] = DEFAULT_POLICIES,
    target: Annotated[float, typer.Option(help="Share of the offered requests to attain.")] = 0.9,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ...; two or more give an interval.", min=1)] = 1,
    tolerance: Annotated[float, typer.Option(help="Relative tolerance of the rate.")] = 0.03,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 300.0,
    data: DataDir = None,
    lengths: Lengths = LENGTHS[0],
    score_rule: ScoreRuleName = None,
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
    """Search the highest request rate at which each policy attains the target, at its best static setting.

    Prints a table (or one JSON object): requests a second a GPU, mean over the seeds with its 95 % interval, the best
    setting, and the ratio to the best of vLLM and Sarathi-Serve. The run behind each figure is replayed by the checker.
    """
    from slo_opt.analysis.capacity import CapacityRequest, capacity_document
    from slo_opt.cli.inputs import score_rule_named
    from slo_opt.cli.progress import progress
    from slo_opt.cli.sweep import (
        check_files,
        interruptible,
        leave_interrupted,
        make_pool,
        parse_names,
        say_what_is_kept,
    )
    from slo_opt.domain.slo import ScoreRule
    from slo_opt.policies.registry import prepare
    from slo_opt.simulate.capacity import CapacityOptions
    from slo_opt.simulate.pool import run_tasks
    from slo_opt.simulate.results_file import ResultsFile
    from slo_opt.simulate.simulator import SimulationOptions

    request = CapacityRequest(
        scenarios=parse_names(scenario, "--scenario"),
        engines=parse_names(engine, "--engine"),
        policies=parse_names(policies, "--policies"),
        seeds=seeds,
        duration_s=duration,
        data_dir=data,
        score_rule=score_rule_named(score_rule) or ScoreRule.DSLO,
        options=CapacityOptions(target, tolerance, lengths, SimulationOptions(0, noise, slowdown, acceptance)),
    )
    check_files(output, resume, plot)
    pool = make_pool(jobs, ray)
    tasks = request.tasks()
    with ResultsFile(output, must_exist=resume) as results:
        say_what_is_kept(results, tasks)
        with interruptible(results) as stopped, progress(quiet) as report:
            prepare(request.policies, report)  # once here, not in every process at once
            run_tasks(tasks, pool, results, report)
        document = capacity_document(request, results.results)
    if document["cells"] or not stopped:
        _print(document, output_format)
    if stopped:
        leave_interrupted(results, tasks)
    if plot is not None:
        _draw(plot, document)


def _print(document: dict[str, Any], output_format: Format) -> None:
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        show_json(document)
        return
    from slo_opt.cli.console import show
    from slo_opt.report.capacity import capacity_tables

    show(capacity_tables(document))


def _draw(path: "Path", document: dict[str, Any]) -> None:
    from slo_opt.report.capacity_bars import draw_capacity
    from slo_opt.traces.atomic import write_atomic

    write_atomic(path, lambda temporary: draw_capacity(document, temporary))
