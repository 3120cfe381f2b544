"""What `capacity` and `gap` share: names, where units run, a file that keeps what has finished."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slo_opt.policies.lengths import LENGTHS

if TYPE_CHECKING:
    from slo_opt.simulate.pool import Pool, Progress
    from slo_opt.simulate.results_file import ResultsFile
    from slo_opt.simulate.tasks import Task

DEFAULT_POLICIES = "vllm-fcfs,sarathi,slos-serve,slo-opt"

Lengths = Annotated[str, typer.Option(help=f"What policies know of output lengths: {', '.join(LENGTHS)}.")]
DataDir = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the published traces; default: generated.")
]
Noise = Annotated[float, typer.Option(help="Spread (sigma of the logarithm) of a factor on batch times.")]
Slowdown = Annotated[float, typer.Option(help="Factor on all batch times that policies do not know of.")]
Acceptance = Annotated[
    float, typer.Option(help="Give the engine a draft model: chance that a drafted token is accepted.")
]
Jobs = Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1)]
RayAddress = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run over this Ray cluster; local starts one.")
]
Results = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Keep each finished run here, a JSON line each; the same file goes on."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Demand that the file of -o is there to go on with.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the result here (png, svg, pdf).")]


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Read a comma list; each name once.

    Raises
    ------
    InvalidInputError
        It names none.
    """
    from slo_opt.cli.inputs import comma_list
    from slo_opt.domain.errors import InvalidInputError

    names = comma_list(text)
    if not names:
        raise InvalidInputError(f"{option} {text!r} names none; give one name or a comma list")
    return names


def make_pool(jobs: int | None, ray: str | None) -> "Pool":
    """Where the units run."""
    import os

    from slo_opt.simulate.pool import Pool

    return Pool(jobs or os.cpu_count() or 1, ray)


def check_files(output: Path | None, resume: bool, plot: Path | None) -> None:
    """Refuse what cannot be written before any work is spent.

    Raises
    ------
    InvalidInputError
        A path where no such file can be.
    SolverNotAvailableError
        A plot is asked for and matplotlib is missing.
    """
    from slo_opt.cli.output import check_writable, same_file
    from slo_opt.domain.errors import InvalidInputError
    from slo_opt.traces.atomic import is_stdout

    if resume and output is None:
        raise typer.BadParameter("--resume goes on with the file of -o; name it")
    if output is not None and is_stdout(output):
        raise InvalidInputError("-o keeps finished runs in a file; for the result on stdout use --format json")
    for path in (output, plot):
        if path is not None:
            check_writable(path)
    if plot is not None:
        from slo_opt.report.figure import require_matplotlib

        require_matplotlib(plot)
        if output is not None and same_file(output, plot):
            raise typer.BadParameter(f"-o and --plot would both write {output}; choose two names")


@contextmanager
def interruptible(results: "ResultsFile") -> Iterator[list[bool]]:
    """Hold Ctrl-C back until what has finished is printed; the list given is then no longer empty."""
    stopped: list[bool] = []
    try:
        yield stopped
    except KeyboardInterrupt:
        stopped.append(True)
    except Exception:
        if results.path is not None and results.results:
            typer.echo(f"slo-opt: finished runs are kept in {results.path}", err=True)
        raise


def leave_interrupted(results: "ResultsFile", tasks: "Sequence[Task]") -> None:
    """Say what is kept and where, and leave with the code of an interrupt."""
    from slo_opt.cli.exits import ExitCode

    kept = sum(key in results.results for key in {task.key for task in tasks})
    if results.path is None:
        where = "nothing is kept: with -o FILE finished runs would be"
    else:
        where = f"{kept} finished runs are kept in {results.path}; the same command goes on from there"
    typer.echo(f"slo-opt: interrupted; {where}", err=True)
    raise typer.Exit(ExitCode.INTERRUPTED)


def say_what_is_kept(results: "ResultsFile", tasks: "Sequence[Task]") -> None:
    """Say that finished units are not run again."""
    kept = sum(key in results.results for key in {task.key for task in tasks})
    if kept and results.path is not None:
        typer.echo(f"slo-opt: {kept} of {len(tasks)} runs are in {results.path} already", err=True)


def stage(progress: "Progress | None", what: str) -> "Progress | None":
    """Progress that says which part of the work is at hand."""
    if progress is None:
        return None
    return lambda phrase, done: progress(f"{what}: {phrase}", done)
