"""`slo-opt route` as a process, and what it refuses before it starts."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slo_opt.cli.main import app
from slo_opt.cli.route import WITHOUT_ENGINE
from slo_opt.routing.registry import ROUTERS

FREE = ("--policy", "round-robin", "--port", "0")


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that does not start."""
    result = CliRunner().invoke(app, ["route", *arguments], prog_name="slo-opt")
    assert result.exit_code in (2, 3), result.output
    assert result.stdout == ""
    return result.exit_code, " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--replica"),
        (("--replica", "nonsense"), 3, "--replica 'nonsense' is no http address"),
        (("--replica", "http://h:1", "--replica", "http://h:1/v1/"), 3, "given twice"),
        (("--replica", "http://h:1", "--policy", "round-robbin"), 3, "Did you mean 'round-robin'?"),
        (("--replica", "http://h:1"), 3, "--engine"),
        (("--replica", "http://h:1", "--engine", "llama-3-8b-h1000"), 3, "Did you mean 'llama-3-8b-h100'?"),
        (("--replica", "http://h:1", "--config", "nowhere.toml"), 3, "nowhere.toml"),
        (("--replica", "http://h:1", "--policy", "round-robin", "--set", "x=1"), 3, "no setting 'x'"),
        (("--replica", "http://h:1", "--policy", "round-robin", "--drain", "-1"), 3, "drain_s is -1.0"),
        (("--replica", "http://h:1", "--port", "70000"), 2, "--port"),
        (("--replica", "http://h:1", "--max-body-mib", "0"), 2, "--max-body-mib"),
    ],
)
def test_refused_at_the_start(arguments: tuple[str, ...], code: int, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLO_OPT_CONFIG", raising=False)
    found, message = refused(*arguments)
    assert (found, words in message) == (code, True), message


def test_a_class_with_a_slowdown_needs_an_engine(tmp_path: Path):
    config = tmp_path / "c.toml"
    config.write_text("[classes.chat]\nttft_slowdown = 3\ntpot_ms = 50\n")
    code, message = refused("--replica", "http://h:1", "--policy", "round-robin", "--config", str(config))
    assert code == 3
    assert "class 'chat' has a ttft_slowdown: give --engine" in message


def test_policies_that_need_no_engine_are_shipped():
    assert set(WITHOUT_ENGINE) < set(ROUTERS)


def test_aiohttp_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = CliRunner().invoke(app, ["route", "--replica", "http://h:1", *FREE], prog_name="slo-opt")
    assert result.exit_code == 6
    assert "pip install 'slo-opt[live]'" in result.stderr


class Upstream(BaseHTTPRequestHandler):
    """Answers everything; a stream waits in its middle until it is let go."""

    protocol_version = "HTTP/1.1"
    go = threading.Event()
    began = threading.Event()

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "m"}]}' if self.path == "/v1/models" else b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b'data: {"choices": [{"text": "a"}]}\n\n')
        type(self).began.set()
        type(self).go.wait(300)
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def upstream() -> Iterator[str]:
    """Address of a server in a thread."""
    Upstream.go.clear()
    Upstream.began.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Upstream.go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def process(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A router that is ready, and its address."""
    environment = {key: value for key, value in os.environ.items() if key != "SLO_OPT_CONFIG"}
    command = [sys.executable, "-m", "slo_opt.cli.main", "route", *FREE, *arguments]
    router = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert router.stdout is not None
        url = router.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), router.communicate(timeout=300)[1]
        yield router, url
    finally:
        router.kill()
        router.communicate(timeout=300)


def post(url: str) -> "urllib.request.Request":
    body = json.dumps({"prompt": [1], "stream": True}).encode()
    return urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})


def refusal_of(url: str) -> int:
    """Status of the first answer that says that the router is not ready."""
    while True:
        try:
            urllib.request.urlopen(f"{url}/ready", timeout=300).close()
        except urllib.error.HTTPError as error:
            return error.code


def test_sigterm_finishes_what_is_under_way(upstream: str):
    pytest.importorskip("aiohttp")
    with process("--replica", upstream) as (router, url):
        with urllib.request.urlopen(f"{url}/v1/models", timeout=300) as answer:
            assert json.loads(answer.read())["data"] == [{"id": "m"}]
        with urllib.request.urlopen(post(url), timeout=300) as stream:
            assert Upstream.began.wait(300)
            router.send_signal(signal.SIGTERM)
            assert refusal_of(url) == 503
            Upstream.go.set()
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert router.wait(300) == 0


def test_a_second_signal_cuts_off(upstream: str):
    pytest.importorskip("aiohttp")
    with process("--replica", upstream) as (router, url), urllib.request.urlopen(post(url), timeout=300):
        assert Upstream.began.wait(300)
        router.send_signal(signal.SIGINT)
        assert refusal_of(url) == 503
        router.send_signal(signal.SIGINT)
        assert router.wait(300) == 0
        assert router.stderr is not None
        assert "1 requests were cut off" in router.stderr.read()


def test_unreachable_replicas_are_a_warning(upstream: str):
    pytest.importorskip("aiohttp")
    with process("--replica", upstream, "--replica", "http://127.0.0.1:9") as (router, url):
        with urllib.request.urlopen(f"{url}/ready", timeout=300) as answer:
            assert answer.status == 200
        router.send_signal(signal.SIGTERM)
        assert router.wait(300) == 0
        assert router.stderr is not None
        assert "http://127.0.0.1:9 is left out until it answers" in router.stderr.read()


def test_a_port_that_is_taken(upstream: str):
    pytest.importorskip("aiohttp")
    port = upstream.rpartition(":")[2]
    result = CliRunner().invoke(
        app,
        ["route", "--replica", "http://127.0.0.1:9", "--policy", "round-robin", "--port", port],
        prog_name="slo-opt",
    )
    assert result.exit_code == 3
    assert "cannot listen there" in result.stderr
