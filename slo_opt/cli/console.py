"""The console that results are printed on."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 140


def show(renderable: "RenderableType") -> None:
    """Print tables on stdout; where nobody watches, wide enough that no cell is broken needlessly."""
    console().print(renderable)


def console() -> "Console":
    """A console on stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
