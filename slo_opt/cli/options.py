"""Options that several commands share, each with one name and one help text."""

from enum import StrEnum
from typing import Annotated

import typer

from slo_opt.domain.engines import ENGINES


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


class UnservablePolicy(StrEnum):
    """What to do with requests that no schedule can attain."""

    ERROR = "error"
    LOSE = "lose"
    DROP = "drop"


TraceFile = Annotated[str, typer.Argument(metavar="TRACE", help="Trace file, plain or gzip; - for stdin.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help=f"Engine model: {', '.join(ENGINES)}, or a file that calibrate wrote; default: the one the trace names."
    ),
]
ScenarioName = Annotated[
    str | None,
    typer.Option("--scenario", help="SLOs for a file that has none: coder, chatbot, mixed, polyserve, ..."),
]
InputFormat = Annotated[str | None, typer.Option(help="Format of the file, where it cannot be told from its content.")]
Window = Annotated[str | None, typer.Option(metavar="START:END", help="Part of the trace, in seconds.")]
Scale = Annotated[float, typer.Option(help="Arrival-rate factor: 2 is twice the load.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0, max=2**31 - 1)]
ScoreRuleName = Annotated[
    str | None,
    typer.Option("--score-rule", help="dslo, mean-tpot or first-late-shifts; default: the trace's, else dslo."),
]
OnUnservable = Annotated[
    UnservablePolicy,
    typer.Option("--unservable", help="Requests no schedule can serve: refuse, count as lost, or drop."),
]
BestEffort = Annotated[float, typer.Option(metavar="SHARE", help="Share of the requests made best effort.")]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="FLEET",
        help="Serve with a fleet: 4; 2:1 for replicas that prefill and that decode; ENGINE=2,ENGINE=2 for a mix.",
    ),
]
Printed = Annotated[Format, typer.Option("--format", help="What to print.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
