"""Ctrl-C during a call into a solver's C++: ask it to stop, and take what it has."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
_TICK_S = 0.1


def run_stoppable(
    work: Callable[[], T],
    stop: Callable[[], None],
    tick: Callable[[float], None] | None = None,
    asked: threading.Event | None = None,
) -> tuple[T, bool]:
    """Run `work` in a thread of its own while this one waits for it or for Ctrl-C.

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
    interrupted = threading.Event() if asked is None else asked

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    with _interrupts_set(interrupted):
        threading.Thread(target=target, daemon=True).start()
        began = time.perf_counter()
        stopped = False
        while not done.wait(_TICK_S):
            if tick is not None:
                tick(time.perf_counter() - began)
            if interrupted.is_set() and not stopped:
                stopped = True
                stop()
    if errors:
        raise errors[0]
    return results[0], stopped or interrupted.is_set()


@contextmanager
def _interrupts_set(event: threading.Event) -> Iterator[None]:
    """In the main thread, let the first Ctrl-C set the event and only the next raise; elsewhere change nothing.

    An exception could strike anywhere between two lines; an event is seen when it is looked for.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
