"""The servers that the live benchmarks compare, and one measured run on one of them."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slo_opt.domain.instance import Instance
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.run import replay
from slo_opt.replay.slo_fields import SloFields

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine_bridge"))
from live_server import MIDDLEWARE, OURS, LiveServer, live_server

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "live.toml"
KV_CACHE_MIB = 512
MODEL_NAME = "small"


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to start and to talk to a server.

    Parameters
    ----------
    name : str
        In tables.
    arguments : tuple of str
        Of vLLM's server, beyond what all have.
    slo_fields : SloFields
        How it is told of SLOs.
    priorities : bool
        Whether requests carry a priority, by the TPOT of their class.
    ours : bool
        Scheduled by slo-opt.
    """

    name: str
    arguments: tuple[str, ...] = ()
    slo_fields: SloFields = SloFields.NONE
    priorities: bool = False
    ours: bool = False


def static(budget_tokens: int, long_prefill_tokens: int = 0) -> Contender:
    """vLLM's own scheduler at a static setting; 0 for no threshold of long prompts."""
    arguments: tuple[str, ...] = ("--max-num-batched-tokens", str(budget_tokens))
    name = f"static {budget_tokens}"
    if long_prefill_tokens:
        arguments += ("--long-prefill-token-threshold", str(long_prefill_tokens))
        name += f"/{long_prefill_tokens}"
    return Contender(name, arguments)


def priority(setting: Contender) -> Contender:
    """vLLM with priorities, at the static setting of another."""
    return Contender("priority", (*setting.arguments, "--scheduling-policy", "priority"), priorities=True)


DEFAULT = Contender("default")
SLO_OPT = Contender("slo-opt", (*OURS, *MIDDLEWARE), SloFields.XARGS, ours=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A contender's server that is up.

    Parameters
    ----------
    contender : Contender
        What it is.
    server : LiveServer
        Where it is.
    """

    contender: Contender
    server: LiveServer

    def counters(self) -> dict[str, float]:
        """Sums of the metrics of vLLM and slo-opt over their series; ended requests and fall-backs by kind as well."""
        sums: dict[str, float] = {}
        for line in self.server.get("/metrics").splitlines():
            found = re.match(r"((?:vllm:|slo_opt_)\w+)(?:\{(.*)\})? (\S+)$", line)
            if found is None:
                continue
            names = [found[1]]
            for metric, label, short in _BY_KIND:
                kind = re.search(rf'{label}="(\w+)"', found[2] or "")
                if found[1] == metric and kind is not None:
                    names.append(f"{short}_{kind[1]}")
            for name in names:
                sums[name] = sums.get(name, 0.0) + float(found[3])
        return sums

    def wait_until_idle(self, timeout_s: float = 120.0) -> None:
        """Return when nothing runs or waits.

        Raises
        ------
        TimeoutError
            Something still does.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            counters = self.counters()
            if not counters["vllm:num_requests_running"] and not counters["vllm:num_requests_waiting"]:
                return
            if time.monotonic() > end_s:
                raise TimeoutError(f"{self.contender.name}: requests are stuck; see {self.server.log}")
            time.sleep(0.5)


@contextmanager
def running(
    contenders: Sequence[Contender], folder: Path, python: str, *, config: Path = CONFIG, path: str = ""
) -> Iterator[list[Running]]:
    """Start servers one after the other, and keep them all up until the block ends.

    Parameters
    ----------
    contenders : sequence of Contender
        In this order.
    folder : Path
        Of the model and the logs.
    python : str
        Interpreter that has vLLM.
    config : Path
        Of slo-opt.
    path : str
        Where further Python modules lie.
    """
    model = folder / "model"
    if not (model / "config.json").exists():
        subprocess.run([python, "-m", "slo_opt.engine_bridge.small_model", str(model)], check=True)
    environment = {"SLO_OPT_CONFIG": str(config), "PYTHONPATH": path}
    with ExitStack() as stack:
        servers = []
        for contender in contenders:
            log = folder / f"{re.sub(r'[^a-z0-9]+', '-', contender.name)}.log"
            arguments = ["--served-model-name", MODEL_NAME, *contender.arguments]
            server = stack.enter_context(
                live_server(model, log, arguments, environment=environment, kv_cache_mib=KV_CACHE_MIB, python=python)
            )
            servers.append(Running(contender, server))
            print(f"{contender.name}: {server.url}", file=sys.stderr, flush=True)
        yield servers


def measured(server: Running, instance: Instance, seed: int) -> dict[str, Any]:
    """Replay an instance on an idle server.

    Parameters
    ----------
    server : Running
        Where.
    instance : Instance
        What.
    seed : int
        Of the prompts: equal ones would be found in the prefix cache of an earlier run.

    Raises
    ------
    KeyboardInterrupt
        The replay was cut short.
    """
    server.wait_until_idle()
    before = server.counters()
    contender = server.contender
    options = ReplayOptions(
        MODEL_NAME, contender.slo_fields, priority_by_slo=contender.priorities, seed=seed, vocab_size=2000
    )
    run = replay(instance, server.server.url, options)
    if run.cut:  # by Ctrl-C: half a run is no measurement
        raise KeyboardInterrupt
    server.wait_until_idle()
    after = server.counters()
    found = run.metrics().to_dict()
    found["requests"] = len(run.requests)
    found["wall_s"] = run.wall_s
    found["counters"] = {name: after[name] - before.get(name, 0.0) for name in COUNTED if name in after}
    return found


_BY_KIND = (("slo_opt_ended_total", "outcome", "ended"), ("slo_opt_fallbacks_total", "reason", "fallback"))
COUNTED = (
    "ended_admitted",
    "ended_best_effort",
    "slo_opt_attained_total",
    "slo_opt_offered_total",
    "slo_opt_fallbacks_total",
    "slo_opt_plan_deviations_total",
    "slo_opt_planner_seconds_sum",
    "slo_opt_planner_seconds_count",
    "vllm:num_preemptions_total",
)


def median(values: Sequence[float]) -> float:
    """Median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


@dataclass(slots=True)
class Spread:
    """Median, least and most of repeated measurements."""

    values: list[float] = field(default_factory=list)

    def text(self, form: str) -> str:
        """``median [least, most]`` with a format such as ``{:.2f}``."""
        if not self.values:
            return "-"
        return f"{form.format(median(self.values))} [{form.format(min(self.values))}, {form.format(max(self.values))}]"
