"""vLLM replicas behind Ray Serve, started by `slo-opt ray` as a user would. Needs Ray and vLLM; takes minutes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
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


def command_with(*options):
    """As the documentation starts it, on a free port."""
    command = [sys.executable, "-m", "slo_opt.cli.main", "ray", "--port", str(free_port()), *options]
    command += ["--engine", str(ROOT / "examples/small-llama-cpu.json")]
    return [*command, "--config", str(ROOT / "examples/live.toml")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """One replica, and a second one as soon as slo-opt's signal asks for it. It must leave no process and no file."""
    folder = tmp_path_factory.mktemp("fleet")
    log = folder / "fleet.log"
    command = command_with(
        "--replicas", "1", "--max-replicas", "2", "--upscale-delay", "0", "--downscale-delay", "100000"
    )
    answer = folder / "url.txt"
    with TemporaryDirectory() as scratch:  # a short path: sockets are made in it
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),  # its logs stay
            "TMPDIR": scratch,
        }
        with log.open("w") as sink, answer.open("w") as told:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=sink, env=environment)
        try:
            end_s = time.monotonic() + START_S
            while not (url := answer.read_text().strip()):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < end_s, log.read_text()[-4000:]
                time.sleep(0.5)
            yield Fleet(url, process.pid)
            started = descendants(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.returncode == 0, log.read_text()[-4000:]
        eventually(lambda: not [pid for pid, birth in started.items() if birth_of(pid) == birth], "all have ended")
        left = {path.name for path in Path(scratch).iterdir()}
        assert {name for name in left if not name.startswith("torchinductor_")} == set()  # PyTorch's cache


def eventually(holds, what):
    """Wait until it does."""
    end_s = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.2)


def birth_of(pid):
    """Start time of a process, which tells it from later ones of its number; None where it has ended."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state == "Z" else fields[18]


def descendants(pid):
    """Processes below one, with their births."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return {child: birth_of(child) for child in found[1:]}


def name_of(pid):
    """What a process calls itself; empty where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


class Fleet(NamedTuple):
    """Where it answers, and the process that started it."""

    url: str
    pid: int

    def replicas(self):
        """Process ids of the replicas that serve; Ray writes into the name of a process what it does."""
        found = []
        for pid in descendants(self.pid):
            with suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
                if (
                    b"ServeReplica:slo-opt:SloServer" in name
                    and b".__init__" not in name
                    and b".initialize" not in name
                ):
                    found.append(pid)
        return found


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


def test_what_cannot_be_promised_asks_for_another_replica(fleet):
    """Requests come one by one: nothing but slo-opt's own signal tells Ray that one replica is not enough."""
    assert len(fleet.replicas()) == 1

    def declined():
        assert post(fleet, prompt=[5, 6, 7], vllm_xargs={"slo_ttft_ms": 1, "slo_tpot_ms": 1})[0] == 200
        return len(fleet.replicas()) == 2

    eventually(declined, "a second replica")


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
    eventually(lambda: len(fleet.replicas()) == 2, "two replicas")
    first, _ = fleet.replicas()
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


def test_streams_that_had_begun_end_with_an_error_and_later_requests_wait_for_the_next_replica(fleet):
    begun = threading.Semaphore(0)

    def stream():
        body = {"model": "small", "prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            fleet.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            lines = [answer.readline()]
            begun.release()
            return lines + list(answer)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(stream) for _ in range(4)]
        for _ in answers:
            assert begun.acquire(timeout=600)
        for pid in fleet.replicas():
            os.kill(pid, signal.SIGKILL)
        for answer in answers:
            *_, last, done = re.findall(rb"^data: (.*)$", b"".join(answer.result()), re.MULTILINE)
            assert (json.loads(last)["error"]["code"], done) == (502, b"[DONE]")
    status, text = post(fleet, prompt=[5, 6, 7])
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, 6)
    eventually(lambda: len(fleet.replicas()) == 2, "Ray has started both again")


@pytest.mark.parametrize("started", ["gcs_server", "ServeReplica:slo-opt:SloServer"])
def test_it_can_be_told_to_end_while_it_starts(started, tmp_path):
    log = tmp_path / "fleet.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command_with("--policy", "round-robin"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink
        )
    try:
        eventually(lambda: any(started in name_of(pid) for pid in descendants(process.pid)), log.read_text())
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, told) == (0, b""), log.read_text()
    eventually(lambda: not [pid for pid, birth in below.items() if birth_of(pid) == birth], "all have ended")
