"""A vLLM server of our own on a loopback port: started, waited for, and stopped with all its children."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# One thread each: with two, any other load makes each of them wait for the other (a 7 ms step took 420).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}
ARGUMENTS = ("--load-format", "dummy", "--enforce-eager", "--block-size", "32", "--host", "127.0.0.1")
OURS = ("--scheduler-cls", "slo_opt.engine_bridge.make_scheduler")
MIDDLEWARE = ("--middleware", "slo_opt.engine_bridge.middleware.SloMiddleware")


class ServerDiedError(RuntimeError):
    """The server ended, or was not ready in time; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running server.

    Parameters
    ----------
    url : str
        Without a path: ``http://127.0.0.1:PORT``.
    pid : int
        The API process, first of its process group; the engine core is its child.
    log : Path
        Output of all its processes.
    process : subprocess.Popen
        To see whether it still runs.
    """

    url: str
    pid: int
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def alive(self) -> bool:
        """Whether the API process runs."""
        return self.process.poll() is None

    def get(self, path: str, timeout_s: float = 10.0) -> str:
        """Body of an answer with status 200."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            text: str = answer.read().decode()
        return text

    def log_text(self) -> str:
        """Everything logged so far."""
        return self.log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """The API process and everything below it, the API process first."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found


@contextmanager
def live_server(
    model: Path,
    log: Path,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    kv_cache_mib: int = 256,
    ready_s: float = 300.0,
    python: str = sys.executable,
    port: int = 0,
) -> Iterator[LiveServer]:
    """Serve `model` until the block ends.

    Parameters
    ----------
    model : Path
        As `write_small_model` leaves it.
    log : Path
        Where the output goes.
    arguments : sequence of str
        Further options of vLLM's server; a later ``--load-format auto`` overrides the one given here.
    environment : mapping, optional
        Further variables.
    kv_cache_mib : int
        Memory of the KV cache.
    ready_s : float
        How long it may take to start.
    python : str
        Interpreter that has vLLM.
    port : int
        Where it listens; 0 takes a free one.

    Raises
    ------
    ServerDiedError
        It did not come up.
    """
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += [*ARGUMENTS, "--kv-cache-memory-bytes", str(kv_cache_mib << 20), *arguments]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
    server = LiveServer(f"http://127.0.0.1:{port}", process.pid, log, process)
    try:
        _wait_until_ready(server, ready_s)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(server: LiveServer, ready_s: float) -> None:
    end_s = time.monotonic() + ready_s
    while time.monotonic() < end_s:
        if not server.alive:
            raise ServerDiedError(f"vLLM ended with code {server.process.returncode}:\n{_complaint(server)}")
        try:
            server.get("/health", timeout_s=2.0)
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
        else:
            return
    raise ServerDiedError(f"vLLM was not ready within {ready_s:.0f} s:\n{_complaint(server)}")


def _complaint(server: LiveServer) -> str:
    """The first errors in the log, which name the cause, or else its end."""
    lines = server.log_text().splitlines()
    return "\n".join([line for line in lines if "Error" in line][:5] or lines[-40:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the whole process group: asked first, then killed."""
    for sign, wait_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        end_s = time.monotonic() + wait_s
        while time.monotonic() < end_s:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                process.wait()
                return
            time.sleep(0.1)
