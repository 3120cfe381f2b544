"""Ctrl-C during a call into a solver's C++: ask it to stop, and take what it has."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_TICK_S = 0.1


def run_stoppable(
    work: Callable[[], T],
    stop: Callable[[], None],
    tick: Callable[[float], None] | None = None,
    asked: threading.Event | None = None,
) -> tuple[T, bool]:
    """Run `work` in a thread of its own while this one waits for it or for a `KeyboardInterrupt`.

    Parameters
    ----------
    work : callable
        The call that may take long.
    stop : callable
        Asks `work` to return soon; called once, from the waiting thread.
    tick : callable or None
        Called with the seconds gone by, about ten times a second.
    asked : threading.Event or None
        Set by another thread, it stops the work as Ctrl-C does.

    Returns
    -------
    tuple
        What `work` returned, and whether it was asked to stop.

    Raises
    ------
    KeyboardInterrupt
        The second one: the solver does not react.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=target, daemon=True).start()
    began = time.perf_counter()
    stopped = False
    while not done.is_set():
        try:
            done.wait(_TICK_S)
            if tick is not None and not done.is_set():
                tick(time.perf_counter() - began)
            if asked is not None and asked.is_set() and not stopped:
                stopped = True
                stop()
        except KeyboardInterrupt:
            if stopped:
                raise
            stopped = True
            stop()
    if errors:
        raise errors[0]
    return results[0], stopped
