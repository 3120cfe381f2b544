"""Where the engine's process leaves its metrics for the process that answers /metrics."""

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


def serve_metrics() -> None:
    """Let this process show what engine processes of the same server write; entry point of ``vllm.general_plugins``.

    vLLM calls it in every process, the one that answers /metrics before it starts the others: they inherit the name of
    the folder. The folder is made by the first engine that has metrics of ours, so other schedulers leave no trace.
    Does nothing where prometheus_client is absent, and a second time.
    """
    if PROMETHEUS_DIRECTORY in os.environ:
        return
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return
    if OWN_DIRECTORY not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"slo-opt-metrics-{os.getpid()}-{os.urandom(4).hex()}"
        os.environ[OWN_DIRECTORY] = str(folder)
        atexit.register(_remove, folder, os.getpid())
    _register()


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends with the same list of exit functions
        shutil.rmtree(folder, ignore_errors=True)


class OtherProcesses:
    """Collector of the metrics that other processes wrote into the folder."""

    def describe(self) -> list[Any]:
        """No names claimed: the same ones may be collected in this process."""
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


def _register() -> None:
    from prometheus_client import REGISTRY

    with suppress(KeyError):
        REGISTRY.unregister(_OTHER_PROCESSES)
    REGISTRY.register(_OTHER_PROCESSES)


@contextmanager
def values_in_shared_files() -> Iterator[None]:
    """Within it, prometheus_client makes values that other processes can read, where a folder is named for them."""
    from prometheus_client import values

    folder = os.environ.get(PROMETHEUS_DIRECTORY) or os.environ.get(OWN_DIRECTORY)
    if folder is None or values.ValueClass._multiprocess:
        yield
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    plain, given = values.ValueClass, os.environ.get(PROMETHEUS_DIRECTORY)
    values.ValueClass, os.environ[PROMETHEUS_DIRECTORY] = _shared_class(folder), folder
    try:
        yield
    finally:
        values.ValueClass = plain
        if given is None:
            del os.environ[PROMETHEUS_DIRECTORY]


_shared_classes: dict[str, Any] = {}


def _shared_class(folder: str) -> Any:
    """prometheus_client's value class for files of this process; a forked child goes on in the memory it got."""
    from prometheus_client.values import MultiProcessValue

    if folder not in _shared_classes:
        pid = os.getpid()
        _shared_classes[folder] = MultiProcessValue(lambda: pid)
    return _shared_classes[folder]
