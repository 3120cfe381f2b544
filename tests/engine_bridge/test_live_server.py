"""One real server on a loopback port, scheduled by slo-opt, as a client of the OpenAI API sees it."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from live_server import MIDDLEWARE, OURS, live_server
from needs_vllm import require_vllm

HERE = Path(__file__).parent
CONFIG = """
[policy]
name = "failing_policy:FailingPolicy"

[classes.chat]
ttft_ms = 20000
tpot_ms = 2000

[classes.hopeless]
ttft_ms = 0.001
tpot_ms = 0.001

[classes.poison]
ttft_ms = 20000
tpot_ms = 2000
"""
PROMPT = list(range(10, 60))


@pytest.fixture(scope="module")
def server(telling_model, tmp_path_factory):
    require_vllm()
    folder = tmp_path_factory.mktemp("server")
    (folder / "slo-opt.toml").write_text(CONFIG)
    arguments = ["--load-format", "auto", "--served-model-name", "small", *OURS, *MIDDLEWARE]
    environment = {"SLO_OPT_CONFIG": str(folder / "slo-opt.toml"), "PYTHONPATH": str(HERE)}
    with live_server(telling_model, folder / "server.log", arguments, environment=environment) as running:
        yield running


def post(server, fields=None, headers=None, *, path="/v1/completions", **body):
    """Status and JSON body of an answer."""
    content = {"model": "small", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "temperature": 0, **body}
    if fields is not None:
        content["vllm_xargs"] = fields
    request = urllib.request.Request(
        server.url + path, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def metric(server, name, **labels):
    """Sum of a metric over the series that have these labels; None where there is none."""
    found = [
        float(line.rpartition(" ")[2])
        for line in server.get("/metrics").splitlines()
        if re.match(rf"{re.escape(name)}[ {{]", line)
        and all(f'{label}="{value}"' in line for label, value in labels.items())
    ]
    return sum(found) if found else None


def eventually(check, timeout_s=20.0):
    """Whether `check` holds before long: metrics of other processes are a little late."""
    end_s = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True


def counted(server, name, **labels):
    return metric(server, name, **labels) or 0.0


@pytest.mark.parametrize(
    ("slo", "fields", "headers"),
    [
        ("chat", {"slo_class": "chat"}, None),
        ("default", {"slo_ttft_ms": 20000, "slo_tpot_ms": 2000}, None),
        ("default", {"slo_ttft_ms": "20000", "slo_tpot_ms": "2000"}, None),
        ("default", None, {"x-slo-ttft-ms": "20000", "x-slo-tpot-ms": "2000"}),
        ("chat", {"slo_class": "chat"}, {"x-slo-tpot-ms": "1900"}),
    ],
)
def test_a_request_under_an_slo_is_served_and_attained(server, slo, fields, headers):
    before = counted(server, "slo_opt_attained_total", slo=slo)
    status, answer = post(server, fields, headers)
    assert status == 200
    assert answer["usage"] == {**answer["usage"], "prompt_tokens": len(PROMPT), "completion_tokens": 8}
    assert eventually(lambda: counted(server, "slo_opt_attained_total", slo=slo) == before + 1)


@pytest.mark.parametrize("fields", [None, {"slo_best_effort": True}])
def test_a_request_without_slo_is_best_effort(server, fields):
    offered = counted(server, "slo_opt_offered_total")
    ended = counted(server, "slo_opt_ended_total", outcome="best_effort")
    assert post(server, fields)[0] == 200
    assert eventually(lambda: counted(server, "slo_opt_ended_total", outcome="best_effort") == ended + 1)
    assert counted(server, "slo_opt_offered_total") == offered


def test_what_cannot_be_on_time_is_served_all_the_same(server):
    before = counted(server, "slo_opt_offered_total", slo="hopeless")
    status, answer = post(server, {"slo_class": "hopeless"})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 8)
    assert eventually(lambda: counted(server, "slo_opt_offered_total", slo="hopeless") == before + 1)
    assert counted(server, "slo_opt_attained_total", slo="hopeless") == 0


@pytest.mark.parametrize(
    ("named", "fields", "headers"),
    [
        ("slo_ttft_ms", {"slo_ttft_ms": "soon", "slo_tpot_ms": 50}, None),
        ("slo_ttft_ms", {"slo_ttft_ms": 0, "slo_tpot_ms": 50}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500, "slo_tpot_ms": -1}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500, "slo_tpot_ms": "nan"}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500, "slo_tpot_ms": 1e300}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500, "slo_tpot_ms": [50]}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500, "slo_tpot_ms": {"ms": 50}}, None),
        ("slo_tpot_ms", {"slo_ttft_ms": 500}, None),
        ("slo_class", {"slo_class": "caht"}, None),
        ("slo_tpod_ms", {"slo_ttft_ms": 500, "slo_tpod_ms": 50}, None),
        ("slo_ttft_ms", None, {"x-slo-ttft-ms": "soon", "x-slo-tpot-ms": "50"}),
    ],
)
def test_a_field_that_means_nothing_is_a_400_that_names_it(server, named, fields, headers):
    def scheduled():
        return counted(server, "vllm:prompt_tokens_total")

    before = scheduled()
    status, answer = post(server, fields, headers)
    assert status == 400
    assert named in json.dumps(answer).replace("x-slo-ttft-ms", "slo_ttft_ms")
    assert scheduled() == before


def test_the_nearest_class_is_suggested(server):
    _, answer = post(server, {"slo_class": "caht"})
    assert "chat" in json.dumps(answer)


def test_streaming(server):
    status, whole = post(server, {"slo_class": "chat"})
    assert status == 200
    body = {"model": "small", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "temperature": 0, "stream": True}
    body["vllm_xargs"] = {"slo_class": "chat"}
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line.decode().strip() for line in answer]
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert len(texts) == 8
    assert "".join(texts) == whole["choices"][0]["text"]


def test_chat(server):
    messages = [{"role": "user", "content": "What is a generator?"}]
    status, answer = post(server, {"slo_class": "chat"}, path="/v1/chat/completions", messages=messages, prompt=None)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 8)


def test_many_at_once_are_all_answered_in_full(server):
    def one(number):
        fields = ({"slo_class": "chat"}, {"slo_class": "hopeless"}, None)[number % 3]
        return post(server, fields, prompt=list(range(3, 40 + number)), max_tokens=5 + number)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(48)))
    assert [status for status, _ in answers] == [200] * 48
    assert [answer["usage"]["completion_tokens"] for _, answer in answers] == [5 + number for number in range(48)]


def test_a_client_that_leaves_frees_its_blocks(server):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    body = {"model": "small", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True}
    body["vllm_xargs"] = {"slo_class": "chat"}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    answer.close()
    connection.close()
    assert eventually(lambda: metric(server, "vllm:num_requests_running") == 0)
    assert post(server)[0] == 200
    assert eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)


def test_a_planner_that_fails_leaves_the_step_to_vllm(server):
    before = counted(server, "slo_opt_fallbacks_total", reason="exception")
    status, answer = post(server, {"slo_class": "poison"})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 8)
    assert eventually(lambda: counted(server, "slo_opt_fallbacks_total", reason="exception") > before)
    assert server.log_text().count("poisoned") <= 2, "logged again and again"
    attained = counted(server, "slo_opt_attained_total", slo="chat")
    assert post(server, {"slo_class": "chat"})[0] == 200
    assert eventually(lambda: counted(server, "slo_opt_attained_total", slo="chat") == attained + 1)


def test_plans_are_followed_and_timed(server):
    assert post(server, {"slo_class": "chat"})[0] == 200
    assert counted(server, "slo_opt_planner_seconds_count") > 0
    assert counted(server, "slo_opt_batch_seconds_count") > 0
    assert counted(server, "slo_opt_plan_deviations_total") == 0
    for reason in ("missing_hook", "unsupported", "impossible_plan"):
        assert counted(server, "slo_opt_fallbacks_total", reason=reason) == 0


def test_the_server_is_well_after_all_that(server):
    assert server.alive
    assert server.get("/health") == ""
    assert "EngineDeadError" not in server.log_text()
