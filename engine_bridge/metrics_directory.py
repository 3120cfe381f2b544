"""Where an engine process leaves its metrics for the process that answers /metrics."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROMETHEUS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own; whoever sets it serves its files already
OWN_DIRECTORY = "SLO_OPT_METRICS_DIR"
_FILES = ("counter", "histogram", "gauge_mostrecent")  # as prometheus_client names them, one of each a process
_FILE_BYTES = 1 << 18  # room for about 2,000 series; a file grows when it is full


def serve_metrics() -> None:
    """Let this process show what other processes of the same server count; a ``vllm.general_plugins`` entry point.

    vLLM calls it in every process, in the one that answers /metrics before it starts the others: those inherit the
    name of the folder. The folder is made by the first engine that has such metrics, so that a server with another
    scheduler leaves no trace. Does nothing where prometheus_client is absent or already looks after several processes.
    """
    if PROMETHEUS_DIRECTORY in os.environ:
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if OWN_DIRECTORY not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"slo-opt-metrics-{os.getpid()}-{os.urandom(4).hex()}"
        os.environ[OWN_DIRECTORY] = str(folder)
        atexit.register(_remove, folder, os.getpid())
    with suppress(KeyError):  # a second call
        REGISTRY.unregister(_OTHER_PROCESSES)
    REGISTRY.register(_OTHER_PROCESSES)


class OtherProcesses:
    """Collector of the metrics that other processes wrote into the folder."""

    def describe(self) -> list[Any]:
        """No name is claimed: this process may have the same ones."""
        return []

    def collect(self) -> Iterator[Any]:
        """Their sum, as prometheus_client merges it; nothing while no engine has written."""
        from prometheus_client.multiprocess import MultiProcessCollector

        folder = os.environ.get(OWN_DIRECTORY)
        own = f"_{os.getpid()}.db"
        files = [str(path) for path in Path(folder).glob("*.db") if not path.name.endswith(own)] if folder else []
        if files:
            yield from MultiProcessCollector.merge(files)


_OTHER_PROCESSES = OtherProcesses()


@contextmanager
def values_in_shared_files() -> Iterator[None]:
    """Within it, prometheus_client makes values that other processes can read, where a folder is named for them."""
    from prometheus_client import values

    given = os.environ.get(PROMETHEUS_DIRECTORY)
    folder = given or os.environ.get(OWN_DIRECTORY)
    if folder is None or values.ValueClass._multiprocess:
        yield
        return
    plain = values.ValueClass
    values.ValueClass, os.environ[PROMETHEUS_DIRECTORY] = _shared_class(folder), folder
    try:
        yield
    finally:
        values.ValueClass = plain
        if given is None:
            del os.environ[PROMETHEUS_DIRECTORY]


_shared_classes: dict[str, Any] = {}


def _shared_class(folder: str) -> Any:
    """prometheus_client's value class over files in `folder`, made once: its values share the files."""
    from prometheus_client.values import MultiProcessValue

    if folder not in _shared_classes:
        _take_space(Path(folder))
        creator = os.getpid()

        def process() -> int:
            if os.getpid() != creator:  # forked: files of its own are opened next, in the folder named there
                os.environ[PROMETHEUS_DIRECTORY] = folder
            return os.getpid()

        _shared_classes[folder] = MultiProcessValue(process)
    return _shared_classes[folder]


def _take_space(folder: Path) -> None:
    """Make the files at their size: writing to a mapped hole on a full disk would end the process with SIGBUS.

    Raises
    ------
    OSError
        The disk is full, or the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for kind in _FILES:
        path = folder / f"{kind}_{os.getpid()}.db"
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends with the same list of exit functions
        shutil.rmtree(folder, ignore_errors=True)
