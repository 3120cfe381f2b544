"""Run the units of a sweep: here, over local processes, or over a Ray cluster; results arrive as they finish."""

import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from slo_opt.domain.errors import InvalidInputError, SloOptError, SolverNotAvailableError
from slo_opt.simulate.results_file import ResultsFile
from slo_opt.simulate.tasks import Failure, Outcome, Task, perform

LOCAL = "local"
_POLL_S = 0.5  # between two looks at Ray, so that Ctrl-C is heard
Progress = Callable[[str, float | None], None]


class WorkerLostError(SloOptError):
    """A worker process ended without a result: killed, or out of memory."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Where units run.

    Parameters
    ----------
    jobs : int
        Local processes; 1 runs in this one.
    ray : str or None
        Address of a Ray cluster instead, or ``local`` to start one of `jobs` processes here. The nodes need slo-opt of
        the same version, and the files that the units read under the same paths.

    Raises
    ------
    InvalidInputError
        Fewer than one process.
    """

    jobs: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InvalidInputError(f"jobs is {self.jobs}; expected at least 1 process")

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Tasks with their outcomes, in the order in which they finish. To stop early, close the iterator."""
        if self.ray is not None:
            return _over_ray(tasks, self.ray, self.jobs)
        if self.jobs == 1 or len(tasks) <= 1:
            return ((task, perform(task)) for task in tasks)
        return _over_processes(tasks, min(self.jobs, len(tasks)))


def run_tasks(
    tasks: Sequence[Task], pool: Pool, results: ResultsFile, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run the tasks that are not finished yet, each once, and keep every result as it comes.

    Parameters
    ----------
    tasks : sequence of Task
        Equal ones are run once.
    pool : Pool
        Where.
    results : ResultsFile
        Finished before, and from now on.
    progress : callable or None
        Told the label of what has finished and the share done.

    Returns
    -------
    list of dict
        Result of each task, in order.

    Raises
    ------
    Exception
        The first failure of a task, as it was raised there; what has finished is kept.
    KeyboardInterrupt
        What has finished is kept.
    """
    by_key = {task.key: task for task in tasks}
    todo = [task for key, task in by_key.items() if key not in results.results]
    if progress is not None and todo:
        progress(todo[0].label, (len(by_key) - len(todo)) / len(by_key))
    running = pool.run(todo)
    try:
        for finished, (task, outcome) in enumerate(running, start=1):
            if outcome.failure is not None or outcome.result is None:
                assert outcome.failure is not None
                raise outcome.failure.exception()
            results.add(task, outcome.result, outcome.wall_s)
            if progress is not None:
                progress(task.label, (len(by_key) - len(todo) + finished) / len(by_key))
    finally:
        close = getattr(running, "close", None)
        if close is not None:
            close()
    return [results.results[task.key] for task in tasks]


def _serve(pipe: "Connection[Outcome, Task | None]") -> None:
    """A worker: tasks in, outcomes out. Ctrl-C is the business of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = pipe.recv()
            if task is None:
                return
            pipe.send(perform(task))
        except (EOFError, BrokenPipeError):  # the other side is gone
            return


def _over_processes(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Outcome]]:
    context = multiprocessing.get_context("spawn")  # fork and threads of numerical libraries do not mix
    workers: dict[Connection[Task | None, Outcome], SpawnProcess] = {}
    at_work: dict[Connection[Task | None, Outcome], Task] = {}
    waiting = list(reversed(tasks))
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            at_work[ours] = waiting.pop()
            ours.send(at_work[ours])
        while at_work:
            finished = []
            for pipe in wait(list(at_work)):
                assert isinstance(pipe, Connection)
                task = at_work.pop(pipe)
                try:
                    finished.append((task, pipe.recv()))
                except EOFError:
                    workers[pipe].join(1.0)
                    message = (
                        f"the process at work on {task.label} ended without a result (exit code "
                        f"{workers[pipe].exitcode}): killed, or out of memory; fewer --jobs may help"
                    )
                    finished.append((task, Outcome(None, 0.0, Failure.of(WorkerLostError(message)))))
                    continue
                if waiting:
                    at_work[pipe] = waiting.pop()
                    pipe.send(at_work[pipe])
            # A failure ends the sweep: results first.
            yield from sorted(finished, key=lambda item: item[1].failure is not None)
    finally:
        for pipe, process in workers.items():
            process.terminate()
            pipe.close()
        for process in workers.values():
            process.join()


def _reach(address: str) -> None:
    """Fail within seconds where nobody listens: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


def _over_ray(tasks: Sequence[Task], address: str, jobs: int) -> Iterator[tuple[Task, Outcome]]:
    try:
        import ray
    except ImportError:
        raise SolverNotAvailableError("--ray needs Ray; pip install 'slo-opt[ray]'") from None
    if not tasks:
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        _reach(address)
        if address == LOCAL:
            options |= {"num_cpus": jobs, "include_dashboard": False}
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"--ray {address}: cannot be reached ({error}); expected HOST:PORT or local") from None
    try:
        remote = ray.remote(num_cpus=1)(perform)
        at_work = {remote.remote(task): task for task in tasks}
        while at_work:
            done, _ = ray.wait(list(at_work), timeout=_POLL_S)
            for reference in done:
                yield at_work.pop(reference), ray.get(reference)
    finally:
        ray.shutdown()
