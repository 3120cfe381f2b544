"""The console that results are printed on."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 140


def show(renderable: "RenderableType") -> None:
    """Print tables on stdout; where nobody watches, wide enough that no cell is broken needlessly."""
    console().print(renderable)


def show_json(document: object) -> None:
    """Print a result as one JSON object on stdout.

    Raises
    ------
    ValueError
        It holds an infinity or NaN, which JSON has not.
    """
    import json

    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def console() -> "Console":
    """A console on stdout."""
    from rich.console import Console

    # Names and ids come from the user: a bracket or colon in them is no markup.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)
