"""Two vLLM replicas behind Ray Serve, started by `slo-opt ray` as a user would. Needs Ray and vLLM; takes minutes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
START_S = 1500.0  # on a machine that does something else as well
NEEDS = "needs Ray Serve and vLLM; `make test-ray` installs them and runs this"

pytestmark = pytest.mark.skipif(find_spec("ray") is None or find_spec("vllm") is None, reason=NEEDS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    log = folder / "fleet.log"
    command = [sys.executable, "-m", "slo_opt.cli.main", "ray", "--port", str(free_port()), "--replicas", "2"]
    command += ["--engine", str(ROOT / "examples/small-llama-cpu.json"), "--config", str(ROOT / "examples/live.toml")]
    answer = folder / "url.txt"
    with log.open("w") as sink, answer.open("w") as told:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=sink,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    try:
        end_s = time.monotonic() + START_S
        while not (url := answer.read_text().strip()):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end_s, log.read_text()[-4000:]
            time.sleep(0.5)
        yield Fleet(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert process.returncode == 0, log.read_text()[-4000:]


class Fleet(NamedTuple):
    """Where it answers, and the process that started it."""

    url: str
    pid: int

    def replicas(self):
        """Process ids of the replicas, found below the process that started them all."""
        found, replicas = [self.pid], []
        for pid in found:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
                if b"ServeReplica:slo-opt:SloServer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    replicas.append(pid)
        return replicas


def post(fleet, path="/v1/completions", headers=None, **body):
    """Status and text of an answer."""
    content = {"model": "small", "max_tokens": 6, "ignore_eos": True, "temperature": 0, **body}
    request = urllib.request.Request(
        fleet.url + path, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_stream_passes_token_by_token(fleet):
    status, text = post(fleet, prompt=[5, 6, 7], stream=True, vllm_xargs={"slo_class": "chat"})
    events = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    assert status == 200
    assert events[-1] == "[DONE]"
    assert len([event for event in events[:-1] if json.loads(event)["choices"][0]["text"]]) == 6


def test_whole_answers_of_both_endpoints(fleet):
    status, text = post(fleet, prompt=[5, 6, 7], vllm_xargs={"slo_ttft_ms": 20000, "slo_tpot_ms": 2000})
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, 6)
    messages = [{"role": "user", "content": "What is a generator?"}]
    status, text = post(fleet, "/v1/chat/completions", messages=messages, headers={"x-slo-class": "chat"})
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, 6)


@pytest.mark.parametrize(
    ("fields", "headers", "named"),
    [
        ({"slo_class": "caht"}, {}, "slo_class"),
        ({"slo_ttft_ms": "soon", "slo_tpot_ms": 50}, {}, "slo_ttft_ms"),
        ({}, {"x-slo-tpot-ms": "-1", "x-slo-ttft-ms": "100"}, "slo_tpot_ms"),
    ],
)
def test_a_field_that_means_nothing_is_a_400_that_names_it(fleet, fields, headers, named):
    status, text = post(fleet, prompt=[5, 6], vllm_xargs=fields, headers=headers)
    assert status == 400
    assert named in text


def test_many_at_once_are_all_answered_in_full(fleet):
    def one(number):
        fields = ({"slo_class": "chat"}, {"slo_class": "code"}, {})[number % 3]
        return post(fleet, prompt=list(range(3, 30 + number)), max_tokens=4 + number % 5, vllm_xargs=fields)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, range(24)))
    assert [status for status, _ in answers] == [200] * 24
    assert [json.loads(text)["usage"]["completion_tokens"] for _, text in answers] == [4 + k % 5 for k in range(24)]


def test_a_replica_that_dies_costs_no_request_that_had_not_begun(fleet):
    """Whole answers begin at their end: all of them come, from the other replica."""
    first, _ = replicas = fleet.replicas()
    assert len(replicas) == 2
    with ThreadPoolExecutor(16) as pool:
        answers = [
            pool.submit(post, fleet, prompt=list(range(3, 400 + k)), max_tokens=40, vllm_xargs={"slo_class": "chat"})
            for k in range(16)
        ]
        time.sleep(0.3)
        os.kill(first, signal.SIGKILL)
        found = [answer.result() for answer in answers]
    assert [status for status, _ in found] == [200] * 16, [text[:300] for status, text in found if status != 200]
    assert [json.loads(text)["usage"]["completion_tokens"] for _, text in found] == [40] * 16
