"""Progress of long work: one line on stderr, only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, float | None], None]


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report | None]:
    """Give a function that takes a phrase and the share done, or None where nobody watches.

    Parameters
    ----------
    quiet : bool
        Show nothing in any case.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def report(phrase: str, done: float | None = None) -> None:
            total = None if done is None else 1.0
            bar.update(task, description=phrase, total=total, completed=done or 0.0)

        yield report
