"""What clients of `slo-opt route` see when one of two vLLM servers is killed, cut off or slowed down under load.

    python benchmarks/live/router_faults.py [--vllm-python .venv-vllm/bin/python] [--quick]

Streams begin at a fixed rate. A while later the first server is killed with all its processes and started again; or it
is stopped, so that it takes connections and answers nothing; or it runs a fifth of the time. Counts what became of the
requests, and how long it took until the router had left the server out and had taken it back. Exit code 1 if a request
without a token was lost. Writes benchmarks/results/live_router_faults.json and .md.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from record import record
from servers import CONFIG, KV_CACHE_MIB, MODEL_NAME, ROOT, SLO_OPT

sys.path.insert(0, str(ROOT / "tests" / "engine_bridge"))
from live_server import LiveServer, live_server

FAULTS = ("killed and started again", "cut off for a while", "slowed down 5x")
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32
SLOW_CYCLE_S = 0.1
LOOK_S = 0.02


class Server:
    """A vLLM server that can be hurt and mended.

    Parameters
    ----------
    folder : Path
        Of the model and the logs.
    number : int
        Names its log.
    python : str
        Interpreter that has vLLM.
    """

    def __init__(self, folder: Path, number: int, python: str) -> None:
        self._folder, self._number, self._python = folder, number, python
        self._stack = ExitStack()
        self._port = 0
        self._stops = 0
        self.server: LiveServer
        self.start()

    def start(self) -> None:
        """Start it, at the port of before."""
        log = self._folder / f"faults-{self._number}-{self._stops}.log"
        self._stops += 1
        self.server = self._stack.enter_context(
            live_server(
                self._folder / "model",
                log,
                ["--served-model-name", MODEL_NAME, *SLO_OPT.arguments],
                environment={"SLO_OPT_CONFIG": str(CONFIG)},
                kv_cache_mib=KV_CACHE_MIB,
                python=self._python,
                port=self._port,
            )
        )
        self._port = int(self.server.url.rpartition(":")[2])

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self._stack.close()

    def send(self, sign: signal.Signals) -> None:
        """A signal to all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, sign)

    def close(self) -> None:
        """End it for good."""
        self.send(signal.SIGCONT)
        self._stack.close()

    @asynccontextmanager
    async def slowed(self) -> AsyncIterator[None]:
        """Let it run a fifth of the time."""

        async def cycle() -> None:
            while True:
                self.send(signal.SIGSTOP)
                await asyncio.sleep(0.8 * SLOW_CYCLE_S)
                self.send(signal.SIGCONT)
                await asyncio.sleep(0.2 * SLOW_CYCLE_S)

        cycling = asyncio.create_task(cycle())
        try:
            yield
        finally:
            cycling.cancel()
            await asyncio.gather(cycling, return_exceptions=True)
            self.send(signal.SIGCONT)


@contextmanager
def router(urls: list[str], policy: str, engine: str) -> Iterator[str]:
    """Address of a router in front of servers."""
    command = [sys.executable, "-m", "slo_opt.cli.main", "route", "--port", "0", "--policy", policy, "--engine", engine]
    command += ["--config", str(CONFIG), "--probe-timeout", "2"]
    for url in urls:
        command += ["--replica", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the router did not start: exit code {process.wait()}")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)


@dataclass(slots=True)
class Load:
    """Clients that begin a stream at a fixed rate, until they are told to stop.

    Parameters
    ----------
    url : str
        Of the router.
    rate_rps : float
        How many a second.
    """

    url: str
    rate_rps: float
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    running: bool = True

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Begin, and wait for the last to end."""
        rng = random.Random(1)
        tasks = []
        begin_s = time.monotonic()
        number = 0
        while self.running:
            tasks.append(asyncio.create_task(self._one(session, rng)))
            number += 1
            await asyncio.sleep(max(0.0, begin_s + number / self.rate_rps - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        body = {
            "model": MODEL_NAME,
            "prompt": [rng.randrange(3, 2000) for _ in range(PROMPT_TOKENS)],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "vllm_xargs": {"slo_class": "chat"},
        }
        text, cause = b"", ""
        try:
            async with session.post(f"{self.url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    cause = f"status {answer.status}"
                async for piece in answer.content.iter_any():
                    text += piece
        except (aiohttp.ClientError, TimeoutError) as error:
            cause = type(error).__name__
        if b'"error"' in text:
            cause = cause or "an error event"
        events = [
            json.loads(line[6:]) for line in text.split(b"\n") if line.startswith(b"data: {") and line[-1:] == b"}"
        ]
        told = sum(len(choice.get("token_ids") or ()) for event in events for choice in event.get("choices", ()))
        usage = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
        if not cause and usage == [OUTPUT_TOKENS] and text.endswith(b"data: [DONE]\n\n"):
            self.outcomes["whole"] += 1
        elif told and cause:
            self.outcomes["broken after a token, with an error"] += 1
        else:
            self.outcomes["lost without a token" if not told else "cut without a word"] += 1
        if cause:
            self.causes[cause] += 1


async def metric(session: aiohttp.ClientSession, url: str, name: str, label: str = "") -> float:
    """Sum of the router's series of that name, with that text in their labels."""
    async with session.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == name and label in line)


async def seconds_until(condition: Callable[[], Any], limit_s: float) -> float | None:
    """Seconds until an awaited condition holds; None if it never does."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + limit_s:
        if await condition():
            return time.monotonic() - began_s
        await asyncio.sleep(LOOK_S)
    return None


async def one_fault(fault: str, server: Server, url: str, rate_rps: float, calm_s: float) -> dict[str, Any]:
    """Load, hurt, mend, and count."""
    label = f'replica="{server.server.url}"'
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=180))
        )

        async def is_up() -> bool:
            return await metric(session, url, "slo_opt_router_up", label) > 0

        async def is_down() -> bool:
            return not await is_up()

        load = Load(url, rate_rps)
        hops = await metric(session, url, "slo_opt_router_hops_total")
        loading = asyncio.create_task(load.run(session))
        await asyncio.sleep(calm_s)
        out_s: float | None = None
        if fault == FAULTS[0]:
            await asyncio.to_thread(server.kill)
            out_s = await seconds_until(is_down, 60)
            await asyncio.to_thread(server.start)
        elif fault == FAULTS[1]:
            server.send(signal.SIGSTOP)
            out_s = await seconds_until(is_down, 60)
            await asyncio.sleep(calm_s)
            server.send(signal.SIGCONT)
        else:
            async with server.slowed():
                await asyncio.sleep(3 * calm_s)
        back_s = await seconds_until(is_up, 60)
        await asyncio.sleep(calm_s)
        load.running = False
        await loading
        hopped = await metric(session, url, "slo_opt_router_hops_total") - hops
    return {
        "fault": fault,
        "requests": sum(load.outcomes.values()),
        "outcomes": dict(load.outcomes),
        "causes": dict(load.causes),
        "hops": int(hopped),
        "out_s": out_s,
        "back_s": back_s,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = ("whole", "broken after a token, with an error", "lost without a token", "cut without a word")
    lines = [
        f"| fault | requests | {' | '.join(names)} | sent on to the other | left out after | back after |",
        f"|{'---|' * 9}",
    ]
    for row in rows:
        counts = " | ".join(str(row["outcomes"].get(name, 0)) for name in names)
        times = " | ".join("-" if row[key] is None else f"{row[key]:.2f} s" for key in ("out_s", "back_s"))
        lines.append(f"| {row['fault']} | {row['requests']} | {counts} | {row['hops']} | {times} |")
    note = (
        "Left out after: from the fault until the router sends nothing there. Back after: from when the server answers "
        "again until the router sends there."
    )
    return "\n".join([*lines, "", note, ""])


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="has vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "live" / "faults", help="of model and logs")
    parser.add_argument("--policy", default="join-shortest-queue")
    parser.add_argument("--engine", default="llama-3-8b-h100", help="for policies that predict")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--calm", type=float, default=10.0, help="seconds before, between and after")
    parser.add_argument("--quick", action="store_true", help="two seconds of calm, nothing kept: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.calm = 2.0
    options.folder.mkdir(parents=True, exist_ok=True)
    model = options.folder / "model"
    if not (model / "config.json").exists():
        subprocess.run([options.vllm_python, "-m", "slo_opt.engine_bridge.small_model", str(model)], check=True)
    rows = []
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            servers.append(Server(options.folder, number, options.vllm_python))
            stack.callback(servers[-1].close)
        url = stack.enter_context(router([each.server.url for each in servers], options.policy, options.engine))
        for fault in FAULTS:
            rows.append(asyncio.run(one_fault(fault, servers[0], url, options.rate, options.calm)))
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if not options.quick:
        record("live_router_faults", rows, table(rows))
    return int(
        any(row["outcomes"].get(name) for row in rows for name in ("lost without a token", "cut without a word"))
    )


if __name__ == "__main__":
    sys.exit(main())
