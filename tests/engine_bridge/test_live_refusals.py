"""A real server that refuses what cannot be on time: the client sees 429 with Retry-After, streaming or not."""

import http.client
import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from live_server import MIDDLEWARE, OURS, live_server
from needs_vllm import require_vllm

CONFIG = """
on_unattainable = "refuse"

[classes.chat]
ttft_ms = 20000
tpot_ms = 2000

[classes.hopeless]
ttft_ms = 0.001
tpot_ms = 0.001
"""
TOKENS = {"prompt": list(range(10, 40))}
MESSAGES = {"messages": [{"role": "user", "content": "What is a generator?"}]}


@pytest.fixture(scope="module")
def server(small_model, tmp_path_factory):
    require_vllm()
    folder = tmp_path_factory.mktemp("refusing-server")
    (folder / "slo-opt.toml").write_text(CONFIG)
    arguments = ["--served-model-name", "small", "--enable-scale-out", *OURS, *MIDDLEWARE]
    environment = {"SLO_OPT_CONFIG": str(folder / "slo-opt.toml")}
    with live_server(small_model, folder / "server.log", arguments, environment=environment) as running:
        yield running


def post(server, path, body, headers=None):
    """Status, headers and body of an answer."""
    content = {"model": "small", "max_tokens": 4, "ignore_eos": True, **body}
    request = urllib.request.Request(
        server.url + path, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def of_class(name, path, body):
    if path == "/inference/v1/generate":
        return {"token_ids": TOKENS["prompt"], "sampling_params": {"max_tokens": 4, "extra_args": {"slo_class": name}}}
    return {**body, "vllm_xargs": {"slo_class": name}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", TOKENS),
        ("/v1/completions", {**TOKENS, "n": 2}),
        ("/v1/completions", {"prompt": [[5, 6, 7], [8, 9]]}),
        ("/v1/chat/completions", MESSAGES),
        ("/v1/chat/completions", {**MESSAGES, "n": 2}),
        ("/v1/responses", {"input": "What is a generator?", "max_output_tokens": 4}),
        ("/inference/v1/generate", {}),
    ],
)
def test_a_refusal_is_a_429_and_whatever_can_be_on_time_a_200(server, path, body, stream):
    refused = {**of_class("hopeless", path, body), "stream": stream}
    status, headers, answer = post(server, path, refused)
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["type"]) == (429, 429, "RateLimitError")
    assert error["message"].startswith("slo-opt: refused")
    assert int(headers["Retry-After"]) >= 1
    status, headers, answer = post(server, path, {**of_class("chat", path, body), "stream": stream})
    assert status == 200
    assert headers["Retry-After"] is None
    assert b"abort" not in answer


def test_a_stream_that_is_served_is_whole(server):
    status, headers, answer = post(server, "/v1/completions", {**of_class("chat", "", TOKENS), "stream": True})
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.decode().splitlines() if line]
    assert events[-1] == "[DONE]"
    assert [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 3 + ["length"]


def test_headers_are_refused_too(server):
    status, headers, _ = post(server, "/v1/completions", TOKENS, {"x-slo-ttft-ms": "0.001", "x-slo-tpot-ms": "0.001"})
    assert (status, int(headers["Retry-After"]) >= 1) == (429, True)


def test_who_has_no_slo_is_served(server):
    assert post(server, "/v1/completions", TOKENS)[0] == 200
    assert (
        post(server, "/v1/completions", {**TOKENS, "vllm_xargs": {"slo_class": "hopeless", "slo_best_effort": 1}})[0]
        == 200
    )


def running_requests(server):
    lines = [line for line in server.get("/metrics").splitlines() if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_client_that_leaves_ends_its_request(server):
    """The engine client is watched: closing the stream still reaches the engine."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    body = {**of_class("chat", "", TOKENS), "model": "small", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    assert running_requests(server) == 1
    answer.close()
    connection.close()
    end_s = time.monotonic() + 30
    while running_requests(server) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert running_requests(server) == 0
