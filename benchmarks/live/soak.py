"""Half an hour of mixed load on a server that slo-opt schedules, with everything that clients and planners do wrong.

    python benchmarks/live/soak.py [--minutes 30] [--vllm-python .venv-vllm/bin/python] [--quick]

Besides the traffic of `workload.py`: clients that leave before their first token or amid the stream, SLO fields that
mean nothing, and a policy that fails once a minute. Counts engine errors, answers that are not complete, requests that
are stuck, KV blocks that are still held at the end, and the memory of all processes of the server over time. Exit code
1 if any of them is not as it should be. Writes benchmarks/results/live_soak.json, .md and .png.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from slo_opt.domain.request import Request
from slo_opt.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from record import RESULTS, record
from servers import CONFIG, MODEL_NAME, ROOT, SLO_OPT, Running, running
from workload import live_trace

STUCK_S = 120.0
SAMPLE_S = 5.0
LEAVES, MALFORMED, UNARY = 0.08, 0.04, 0.1
BAD_FIELDS: tuple[dict[str, Any], ...] = (
    {"slo_ttft_ms": "soon", "slo_tpot_ms": 50},
    {"slo_ttft_ms": -1, "slo_tpot_ms": 50},
    {"slo_ttft_ms": 500, "slo_tpot_ms": 0},
    {"slo_ttft_ms": 500, "slo_tpot_ms": 1e300},
    {"slo_ttft_ms": 500, "slo_tpot_ms": "nan"},
    {"slo_ttft_ms": 500, "slo_tpot_ms": {"ms": 50}},
    {"slo_class": "no-such-class"},
    {"slo_typo_ms": 1},
)


class Soak:
    """The clients.

    Parameters
    ----------
    server : Running
        What they load.
    trace : Trace
        What they send.
    seed : int
        Of what they do wrong.
    """

    def __init__(self, server: Running, trace: Trace, seed: int) -> None:
        self.server, self.trace = server, trace
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.memory: list[dict[str, float]] = []
        self._rng = random.Random(seed)

    async def run(self) -> None:
        """Send everything, and wait for the last answer."""
        timeout = aiohttp.ClientTimeout(total=STUCK_S)
        watch = asyncio.create_task(self._watch())
        # The server closes idle connections: one that is used again may be gone.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            began_s = time.monotonic()
            tasks = []
            for request in self.trace.requests:
                await asyncio.sleep(max(began_s + request.arrival_s - time.monotonic(), 0))
                tasks.append(asyncio.create_task(self._one(session, request)))
            await asyncio.gather(*tasks)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    async def _one(self, session: aiohttp.ClientSession, request: Request) -> None:
        rng = self._rng
        stage = request.stages[0]
        slo = self.trace.slo_classes[stage.slo]
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "prompt": [rng.randrange(3, 2000) for _ in range(stage.prompt_tokens)],
            "max_tokens": stage.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": {"slo_class": stage.slo, "slo_ttft_ms": slo.ttft_ms, "slo_tpot_ms": slo.tpot_ms},
        }
        fate = rng.random()
        if fate < MALFORMED:
            await self._malformed(session, {**body, "vllm_xargs": rng.choice(BAD_FIELDS)})
        elif fate < MALFORMED + LEAVES:
            await self._leaving(session, body, rng.expovariate(1.0))
        elif fate < MALFORMED + LEAVES + UNARY:
            await self._whole(session, {**body, "stream": False, "stream_options": None}, stage.output_tokens)
        else:
            await self._whole(session, body, stage.output_tokens)

    async def _malformed(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        """Must be a 400."""
        try:
            async with session.post(self._url, json=body) as answer:
                text = await answer.text()
                if answer.status == 400:
                    self.counts["malformed, answered 400"] += 1
                else:
                    self._wrong(f"malformed fields answered {answer.status}: {text[:200]}")
        except (TimeoutError, aiohttp.ClientError) as error:
            self._wrong(f"malformed fields: {type(error).__name__}: {error}")

    async def _leaving(self, session: aiohttp.ClientSession, body: dict[str, Any], patience_s: float) -> None:
        """A client that goes away, after `patience_s` or with its answer."""
        try:
            async with asyncio.timeout(patience_s), session.post(self._url, json=body) as answer:
                await answer.read()
            self.counts["answered before the client would have left"] += 1
        except TimeoutError:
            self.counts["client left"] += 1
        except aiohttp.ClientError as error:
            self._wrong(f"leaving client: {type(error).__name__}: {error}")

    async def _whole(self, session: aiohttp.ClientSession, body: dict[str, Any], wanted: int) -> None:
        """Must be answered in full."""
        try:
            async with session.post(self._url, json=body) as answer:
                text = await answer.text()
        except TimeoutError:
            self.counts["stuck"] += 1
            self._wrong(f"no full answer within {STUCK_S:g} s")
            return
        except aiohttp.ClientError as error:
            self._wrong(f"{type(error).__name__}: {error}")
            return
        if answer.status != 200:
            self._wrong(f"status {answer.status}: {text[:200]}")
            return
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
        usage = json.loads(events[-1] if body["stream"] else text)["usage"]
        if usage["completion_tokens"] == wanted:
            self.counts["answered in full"] += 1
        else:
            self._wrong(f"{usage['completion_tokens']} of {wanted} tokens")

    def _wrong(self, text: str) -> None:
        self.counts["wrong"] += 1
        if len(self.errors) < 50:
            self.errors.append(text)

    @property
    def _url(self) -> str:
        return f"{self.server.server.url}/v1/completions"

    async def _watch(self) -> None:
        began_s = time.monotonic()
        while True:
            self.memory.append({"s": time.monotonic() - began_s, **resident_mib(self.server.server.pids())})
            await asyncio.sleep(SAMPLE_S)


def resident_mib(pids: list[int]) -> dict[str, float]:
    """Resident memory by process: the API server, vLLM's engine core, its worker."""
    found: dict[str, float] = {}
    for number, pid in enumerate(pids):
        try:
            name = "api" if number == 0 else Path(f"/proc/{pid}/comm").read_text().strip()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        short = {"VLLM::EngineCor": "engine core", "VLLM::Worker": "worker", "api": "api"}.get(name)
        if short is not None:
            found[short] = found.get(short, 0.0) + pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def growth(memory: list[dict[str, float]]) -> dict[str, float]:
    """MiB an hour by process, by least squares over the second half."""
    late = memory[len(memory) // 2 :]
    names = [name for name in memory[-1] if name != "s"]
    if len(late) < 3:
        return {}
    return {
        name: float(np.polyfit([row["s"] for row in late], [row.get(name, 0.0) for row in late], 1)[0] * 3600)
        for name in names
    }


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    rows = [
        ("minutes", f"{document['minutes']:g}"),
        ("requests", document["requests"]),
        *document["counts"].items(),
        *((f"steps left to vLLM: {reason}", count) for reason, count in document["fallbacks"].items()),
        ("KV blocks held at the end", f"{document['kv_usage']:.2%}"),
        ("requests running or waiting at the end", document["left"]),
        ("engine alive", document["alive"]),
        *((f"memory of {name}, first and last", text) for name, text in document["memory_text"].items()),
        ("plans that vLLM did not follow", document["deviations"]),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


def draw(document: dict[str, Any], path: Path) -> None:
    """Memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    memory = document["memory"]
    for name in [name for name in memory[-1] if name != "s"]:
        axis.plot([row["s"] / 60 for row in memory], [row.get(name, np.nan) for row in memory], label=name)
    axis.set(xlabel="minutes", ylabel="resident MiB", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="has vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "live" / "soak", help="of model and logs")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="live_soak", help="of the results; empty prints and writes nothing")
    parser.add_argument("--quick", action="store_true", help="100 seconds, nothing kept: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.name = 100 / 60, ""
    options.folder.mkdir(parents=True, exist_ok=True)
    config = options.folder / "soak.toml"
    config.write_text(f'{CONFIG.read_text()}\n[policy]\nname = "soak_policy:SoakPolicy"\n')
    trace = live_trace(options.load, 60 * options.minutes, options.seed)
    here = str(Path(__file__).parent)
    with running([SLO_OPT], options.folder, options.vllm_python, config=config, path=here) as (server,):
        soak = Soak(server, trace, options.seed)
        asyncio.run(soak.run())
        try:
            server.wait_until_idle()
            time.sleep(1.0)
        except TimeoutError as error:
            soak.errors.append(str(error))
        counters = server.counters()
        failed = counters.get("fallback_exception", 0)
        if failed < options.minutes - 2:
            soak.errors.append(
                f"the policy failed {failed:.0f} times in {options.minutes:.1f} minutes; expected one each"
            )
        document = {
            "minutes": options.minutes,
            "load": options.load,
            "requests": len(trace.requests),
            "counts": dict(sorted(soak.counts.items())),
            "errors": soak.errors,
            "fallbacks": {
                name.removeprefix("fallback_"): int(count)
                for name, count in counters.items()
                if name.startswith("fallback_") and count
            },
            "deviations": int(counters.get("slo_opt_plan_deviations_total", 0)),
            "kv_usage": counters["vllm:kv_cache_usage_perc"],
            "left": int(counters["vllm:num_requests_running"] + counters["vllm:num_requests_waiting"]),
            "alive": server.server.alive and server.server.get("/health") == "",
            "memory": soak.memory,
            "growth_mib_per_hour": growth(soak.memory),
        }
    document["memory_text"] = {
        name: f"{soak.memory[0].get(name, 0):.0f} MiB, {soak.memory[-1][name]:.0f} MiB, "
        f"{document['growth_mib_per_hour'].get(name, 0):+.0f} MiB/h over the second half"
        for name in soak.memory[-1]
        if name != "s"
    }
    print(table(document))
    for line in soak.errors:
        print(line, file=sys.stderr)
    draw(document, options.folder / "soak.png")
    record(options.name, document, table(document))
    if options.name:
        draw(document, RESULTS / f"{options.name}.png")
    sound = not soak.errors and not document["left"] and document["kv_usage"] == 0 and document["alive"]
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
