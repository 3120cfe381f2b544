"""Fleets of two vLLM servers behind one address, and their traffic: code completion in bursts, long prompts of agents.

An agent's first token is due after three times what its prompt takes alone, the tight slowdown of SLOs-Serve (arXiv
2504.08784, table 3): its replica has little time for others meanwhile, which a router may know.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from slo_opt.engine_bridge.config import load_config
from slo_opt.replay.slo_fields import SloFields
from slo_opt.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parent))
from servers import KV_CACHE_MIB, ROOT, SLO_OPT, Contender, Running, running
from workload import ENGINE, Traffic, live_trace

sys.path.insert(0, str(ROOT / "tests" / "engine_bridge"))
from live_server import LiveServer, ServerDiedError

REPLICAS = 2
START_S, END_S = 300.0, 90.0
# One process computes and schedules (`uni`): in two, each spins on a core while the other works, which replicas that
# share cores take from each other. vLLM allows it on CPUs only with this variable.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# So much fits between two tokens of a decode, even late in a long prompt.
BATCHED_TOKENS = 256
FLEET_CONFIG = Path(__file__).parent / "fleet.toml"
_SAME_FOR_ALL = (
    "--no-enable-prefix-caching",  # the same prompts serve every contender
    "--distributed-executor-backend", "uni",
    "--max-num-batched-tokens", str(BATCHED_TOKENS),
)  # fmt: skip
_CLASSES = load_config(FLEET_CONFIG).slo_classes()
FLEET_MIX = (
    Traffic(_CLASSES["code"], "humaneval", "gamma:2", 3.0),
    Traffic(_CLASSES["agent"], "azure-code", "poisson", 1.0),
)


def fleet_trace(load: float, duration_s: float, seed: int) -> Trace:
    """Draw a trace.

    Parameters
    ----------
    load : float
        Factor on the rates.
    duration_s : float
        Of the arrivals.
    seed : int
        Equal arguments give equal traces.
    """
    return live_trace(load, duration_s, seed, mix=FLEET_MIX, name="live-fleet")


@dataclass(frozen=True, slots=True)
class Fleet(Running):
    """Replicas behind one address.

    Parameters
    ----------
    contender : Contender
        Who routes.
    server : LiveServer
        Where requests go.
    replicas : tuple of Running
        Who serves them; none where they cannot be reached by themselves, as in Ray.
    """

    replicas: tuple[Running, ...] = ()

    def counters(self) -> dict[str, float]:
        """Sums over the replicas."""
        sums: Counter[str] = Counter({"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0})
        for replica in self.replicas:
            sums.update(replica.counters())
        return dict(sums)


def routing(policy: str) -> Contender:
    """A fleet under a routing policy."""
    return Contender(policy, ("--policy", policy), slo_fields=SloFields.XARGS, ours=True)


@contextmanager
def replicas(
    folder: Path, python: str, scheduler: Contender = SLO_OPT, configs: Sequence[Path] = (FLEET_CONFIG,) * REPLICAS
) -> Iterator[tuple[Running, ...]]:
    """Servers with logs of their own, one for each configuration.

    Parameters
    ----------
    folder : Path
        Of the model and the logs.
    python : str
        Interpreter that has vLLM.
    scheduler : Contender
        Who plans the batches of all.
    configs : sequence of Path
        Of slo-opt.
    """
    with ExitStack() as stack:
        found: list[Running] = []
        for number, config in enumerate(configs):
            named = replace(
                scheduler,
                name=f"replica {number} of {scheduler.name}",
                arguments=(*scheduler.arguments, *_SAME_FOR_ALL),
            )
            found += stack.enter_context(running([named], folder, python, config=config))
            give_way(found[-1].server)
        yield tuple(found)


def give_way(server: LiveServer) -> None:
    """Let what computes take what clients, router and HTTP leave of the cores: these would be elsewhere.

    Linux weighs sessions first (autogroups), then the threads of a session.

    Parameters
    ----------
    server : LiveServer
        That is up, with one engine or several.
    """
    for pid in server.pids():
        if "Engine" not in Path(f"/proc/{pid}/comm").read_text():
            continue
        autogroup = Path(f"/proc/{pid}/autogroup")
        if autogroup.exists() and os.getsid(pid) != os.getsid(0):
            autogroup.write_text("5")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)


@contextmanager
def routers(policies: Sequence[str], behind: Sequence[Running], folder: Path, engine: Path) -> Iterator[list[Fleet]]:
    """A `slo-opt route` for each policy, all in front of the same replicas."""
    with ExitStack() as stack:
        fleets = []
        for policy in policies:
            contender = routing(policy)
            command = [sys.executable, "-m", "slo_opt.cli.main", "route", "--port", "0", "--config", str(FLEET_CONFIG)]
            command += contender.arguments
            command += ["--engine", str(engine)]
            for replica in behind:
                command += ["--replica", replica.server.url]
            server = stack.enter_context(_address(command, folder / f"route-{policy}.log"))
            fleets.append(Fleet(contender, server, tuple(behind)))
        yield fleets


@contextmanager
def ray_fleets(
    policies: Sequence[str], folder: Path, python: str, engine: Path, *, ours: bool = True
) -> Iterator[list[Fleet]]:
    """A `slo-opt ray` for each policy, with replicas of its own.

    Parameters
    ----------
    policies : sequence of str
        Each by name.
    folder : Path
        Of the logs.
    python : str
        Interpreter that has Ray Serve and vLLM.
    engine : Path
        What the policies predict with.
    ours : bool
        Whether slo-opt's scheduler plans the batches; otherwise vLLM's.
    """
    vllm = {  # as the servers of the other parts have it
        "kv_cache_memory_bytes": KV_CACHE_MIB << 20,
        "max_num_batched_tokens": BATCHED_TOKENS,
        "max_num_seqs": ENGINE.max_num_seqs,
        "block_size": 32,
        "enforce_eager": "true",
        "enable_prefix_caching": "false",
    }
    if not ours:
        vllm["scheduler_cls"] = "vllm.v1.core.sched.scheduler.Scheduler"
    with ExitStack() as stack:
        fleets = []
        for policy in policies:
            contender = routing(policy)
            command = [
                python,
                "-m",
                "slo_opt.cli.main",
                "ray",
                "--port",
                str(_free_port()),
                "--config",
                str(FLEET_CONFIG),
            ]
            command += ["--replicas", str(REPLICAS), "--engine", str(engine), *contender.arguments]
            for name, value in vllm.items():
                command += ["--vllm", f"{name}={value}"]
            server = stack.enter_context(_address(command, folder / f"ray-{policy}.log"))
            give_way(server)
            fleets.append(Fleet(contender, server))
        yield fleets


@contextmanager
def _address(command: Sequence[str], log: Path) -> Iterator[LiveServer]:
    """Run a command that prints its address once it is ready, until the block ends."""
    told = log.with_suffix(".url")
    with log.open("wb") as errors, told.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    try:
        end_s = time.monotonic() + START_S
        while not (url := told.read_text().strip()):
            if process.poll() is not None or time.monotonic() > end_s:
                raise ServerDiedError(f"{' '.join(command)}: not ready\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        print(f"{log.stem}: {url}", file=sys.stderr, flush=True)
        yield LiveServer(url, process.pid, log, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
