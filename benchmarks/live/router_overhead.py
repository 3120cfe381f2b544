"""What `slo-opt route` adds to an answer, and how many requests a second it passes on one core.

    python benchmarks/live/router_overhead.py [--policy least-loaded,slo-opt] [--quick]

A server without an engine answers at once, straight and through the router; the two take turns, in alternating order.
The router has a core of its own where there are two; client and server share another. Added latency is the
difference of quantiles at a fixed rate, throughput is that of a closed loop. The inverse of the CPU time that the
router takes for a request is what one core passes, whatever else the machine does. Writes
benchmarks/results/live_router_overhead.json and .md.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "live.toml"
ENGINE = "llama-3-8b-h100"
RATE_RPS = 200.0
CONCURRENCY = 64
STREAM_TOKENS = 16
PROMPT_TOKENS = 512
GOAL_P50_MS, GOAL_RPS = 2.0, 500.0
_LENGTH = re.compile(rb"content-length: (\d+)")


class Stub(asyncio.Protocol):
    """Answers completions at once: whole, or as a stream with an event a token."""

    whole = b""
    events: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = transport
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]).lower()
            found = _LENGTH.search(head)
            total = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < total:
                return
            streams = self._buffer.find(b'"stream": true', end, total) >= 0
            del self._buffer[:total]
            if head.startswith(b"get /v1/models"):
                self._write(plain(b'{"data": [{"id": "stub"}]}'))
            elif head.startswith(b"get"):
                self._write(plain(b""))
            elif streams:
                self._write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                self._stream(0)
            else:
                self._write(self.whole)

    def _stream(self, token: int) -> None:
        self._write(self.events[token])
        if token + 1 < len(self.events):
            asyncio.get_running_loop().call_soon(self._stream, token + 1)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]


def plain(body: bytes) -> bytes:
    """An answer of known length."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunk(body: bytes) -> bytes:
    """A piece of an answer of unknown length."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def serve_stub(port: Any, cores: set[int]) -> None:
    """Process of the stub; tells its port."""
    os.sched_setaffinity(0, cores)
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": STREAM_TOKENS}
    Stub.whole = plain(json.dumps({"choices": [{"index": 0, "text": "x" * 64}], "usage": usage}).encode())
    tokens = [{"choices": [{"index": 0, "text": f" token{token}"}]} for token in range(STREAM_TOKENS)]
    events = [chunk(f"data: {json.dumps(document)}\n\n".encode()) for document in tokens]
    Stub.events = (*events, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def stub_server(cores: set[int]) -> Iterator[str]:
    """Address of a stub in a process of its own."""
    port: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve_stub, args=(port, cores), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


@contextmanager
def router(upstream: str, policy: str, cores: set[int]) -> Iterator[tuple[str, int]]:
    """Address and process id of a router."""
    command = [sys.executable, "-m", "slo_opt.cli.main", "route", "--replica", upstream, "--port", "0", "--quiet"]
    command += ["--policy", policy, "--engine", ENGINE, "--config", str(CONFIG)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the router did not start: exit code {process.wait()}")
        os.sched_setaffinity(process.pid, cores)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """A connection that is used again and again."""

    def __init__(self, url: str, stream: bool) -> None:
        body = {"model": "stub", "prompt": list(range(1000, 1000 + PROMPT_TOKENS)), "max_tokens": STREAM_TOKENS}
        text = json.dumps({**body, "stream": stream, "vllm_xargs": {"slo_class": "chat"}}).encode()
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text
        self._stream = stream

    async def open(self) -> "Client":
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))
        return self

    async def ask(self) -> tuple[float, float]:
        """Seconds to the first byte of an answer's body, and to its end."""
        began_s = time.perf_counter()
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"answered {head[:60]!r}, {await self._reader.read(300)!r}")
        if self._stream:
            await self._reader.readuntil(b"\n\n")
            first_s = time.perf_counter() - began_s
            await self._reader.readuntil(b"0\r\n\r\n")
            return first_s, time.perf_counter() - began_s
        found = _LENGTH.search(head)
        assert found is not None
        await self._reader.readexactly(int(found[1]))
        whole_s = time.perf_counter() - began_s
        return whole_s, whole_s

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()


async def at_rate(url: str, stream: bool, requests: int) -> dict[str, float]:
    """Latencies of requests that begin at fixed times, whatever became of those before."""
    free = [await Client(url, stream).open() for _ in range(8)]
    times: list[tuple[float, float]] = []

    async def one() -> None:
        client = free.pop() if free else await Client(url, stream).open()
        times.append(await client.ask())
        free.append(client)

    for client in free:
        await client.ask()
    begin_s = time.perf_counter()
    tasks = []
    for number in range(requests):
        await asyncio.sleep(max(0.0, begin_s + number / RATE_RPS - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for client in free:
        client.close()
    first, whole = np.array(times).T * 1e3
    (first_50, first_99), (whole_50, whole_99) = (
        map(float, np.percentile(column, (50, 99))) for column in (first, whole)
    )
    return {"first_p50": first_50, "first_p99": first_99, "whole_p50": whole_50, "whole_p99": whole_99}


async def flat_out(url: str, stream: bool, seconds: float) -> tuple[int, float]:
    """Requests served in a closed loop, and the seconds that it took."""
    clients = [await Client(url, stream).open() for _ in range(CONCURRENCY)]
    end_s = time.perf_counter() + seconds
    count = 0

    async def loop(client: Client) -> None:
        nonlocal count
        while time.perf_counter() < end_s:
            await client.ask()
            count += 1

    began_s = time.perf_counter()
    await asyncio.gather(*map(loop, clients))
    took_s = time.perf_counter() - began_s
    for client in clients:
        client.close()
    return count, took_s


def measure(
    policy: str, rounds: int, requests: int, seconds: float, cores: tuple[set[int], set[int]]
) -> dict[str, Any]:
    """One policy, streamed and not."""
    found: dict[str, Any] = {"policy": policy}
    with stub_server(cores[1]) as upstream, router(upstream, policy, cores[0]) as (routed, pid):
        for kind, stream in (("whole", False), ("stream", True)):
            rows: dict[str, list[dict[str, float]]] = {"direct": [], "routed": []}
            sides = [("direct", upstream), ("routed", routed)]
            for number in range(rounds):
                for side, url in sides if number % 2 else sides[::-1]:
                    row = asyncio.run(at_rate(url, stream, requests))
                    before_s = cpu_s(pid)
                    count, took_s = asyncio.run(flat_out(url, stream, seconds))
                    row["rps"] = count / took_s
                    if side == "routed":
                        row["cpu_ms"] = 1e3 * (cpu_s(pid) - before_s) / count
                    rows[side].append(row)
                    print(policy, kind, side, {key: round(value, 3) for key, value in row.items()}, file=sys.stderr)
            found[kind] = {"rounds": rows, **summary(rows)}
    return found


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians over rounds; what is added is taken round by round."""
    found = {}
    for key in ("first_p50", "first_p99", "whole_p50", "whole_p99"):
        added = [routed[key] - direct[key] for direct, routed in zip(rows["direct"], rows["routed"], strict=True)]
        found[f"added_{key}_ms"] = statistics.median(added)
    for side in ("direct", "routed"):
        found[f"{side}_rps"] = statistics.median(row["rps"] for row in rows[side])
    found["cpu_ms"] = statistics.median(row["cpu_ms"] for row in rows["routed"])
    found["one_core_rps"] = 1e3 / found["cpu_ms"]
    return found


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| policy | answer | added to the first byte, p50 | p99 | to the whole, p50 | p99 | "
        "requests/s, direct | routed | router CPU a request | requests/s of one core |",
        f"|{'---|' * 10}",
    ]
    for found in document["policies"]:
        for kind, words in (("whole", "whole"), ("stream", f"stream of {STREAM_TOKENS} tokens")):
            row = found[kind]
            added = [row[f"added_{name}_ms"] for name in ("first_p50", "first_p99", "whole_p50", "whole_p99")]
            lines.append(
                f"| {found['policy']} | {words} | {' | '.join(f'{value:.2f} ms' for value in added)} | "
                f"{row['direct_rps']:.0f} | {row['routed_rps']:.0f} | {row['cpu_ms']:.2f} ms | "
                f"{row['one_core_rps']:.0f} |"
            )
    goals = f"Goals: at most {GOAL_P50_MS:g} ms added at the median, at least {GOAL_RPS:g} requests/s on one core"
    worst = max(found[kind]["added_whole_p50_ms"] for found in document["policies"] for kind in ("whole",))
    least = min(found["whole"]["routed_rps"] for found in document["policies"])
    kept = "kept" if worst <= GOAL_P50_MS and least >= GOAL_RPS else "missed"
    note = (
        f"Latencies at {RATE_RPS:g} requests/s, throughput with {CONCURRENCY} requests under way; prompts of "
        f"{PROMPT_TOKENS} token ids, an SLO class in each body. Medians of {document['rounds']} rounds in "
        f"alternating order. {goals}: {kept}. {document['note']}"
    )
    return "\n".join([*lines, "", note.strip(), ""])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="least-loaded,slo-opt", help="comma list of routing policies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1500, help="at the fixed rate, a round and side")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the closed loop, a round and side")
    parser.add_argument("--note", default="", help="a sentence for the result")
    parser.add_argument("--quick", action="store_true", help="half a minute, nothing kept: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.requests, options.seconds = 2, 200, 1.0
    every = sorted(os.sched_getaffinity(0))
    cores = ({every[0]}, set(every[1:]) or {every[0]})
    os.sched_setaffinity(0, cores[1])
    document = {
        "rounds": options.rounds,
        "cores": len(every),
        "note": options.note,
        "policies": [
            measure(policy, options.rounds, options.requests, options.seconds, cores)
            for policy in options.policy.split(",")
        ],
    }
    print(table(document))
    if not options.quick:
        record("live_router_overhead", document, table(document))


if __name__ == "__main__":
    main()
