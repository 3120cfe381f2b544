"""Exit codes, and how errors become one message and a code."""

import sys
import traceback
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from slo_opt.domain.errors import SloOptError, SolverNotAvailableError


class ExitCode(IntEnum):
    """What the process says to its caller; documented in docs/exit-codes.md.

    Attributes
    ----------
    OK
        Solved as asked. A gap left open at a time limit is an answer, too.
    UNEXPECTED
        A defect of slo-opt or of a solver.
    USAGE
        The command line cannot be read: an unknown option or command, a word where a number belongs.
    BAD_INPUT
        A file, or a name or value given on the command line, that means nothing.
    INFEASIBLE
        Proved: nothing satisfies the constraints.
    LIMIT
        A limit was reached before anything was found.
    NOT_INSTALLED
        A solver or library is not installed, or in a version that gives wrong answers.
    INTERRUPTED
        Ctrl-C before there was anything to report.
    """

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    BAD_INPUT = 3
    INFEASIBLE = 4
    LIMIT = 5
    NOT_INSTALLED = 6
    INTERRUPTED = 130


def exit_code_of(error: BaseException) -> ExitCode:
    """The code that an exception ends the process with."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, SolverNotAvailableError):
        return ExitCode.NOT_INSTALLED
    if isinstance(error, (SloOptError, OSError)):
        return ExitCode.BAD_INPUT if isinstance(error, (ValueError, OSError)) else ExitCode.UNEXPECTED
    return ExitCode.UNEXPECTED


def message_of(error: BaseException) -> str:
    """One line for the user."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and not isinstance(error, SloOptError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, SloOptError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (a defect of slo-opt: `slo-opt --debug ...` shows where)"


class Root(TyperGroup):
    """The root command: the only place where exceptions end."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn an exception into a message on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # typer ends quietly when the reader of stdout is gone
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__module__.partition(".")[0] in ("click", "typer"):
                self._point_elsewhere(error)
                raise  # usage errors and exits are typer's own
            if ctx.params.get("debug"):
                traceback.print_exc()
            print(f"slo-opt: error: {message_of(error)}", file=sys.stderr)
            raise typer.Exit(exit_code_of(error)) from error

    def _point_elsewhere(self, error: Any) -> None:
        """Say which commands have an option that the one at hand lacks."""
        option = getattr(error, "option_name", None)
        if type(error).__name__ != "NoSuchOption" or option is None:
            return
        others = [
            name
            for name, command in self.commands.items()
            if any(option in parameter.opts for parameter in command.params)
        ]
        if others:
            error.message += f"; it belongs to {', '.join(others)}."
