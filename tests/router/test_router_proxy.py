"""What passes the router, and what it answers itself."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'slo-opt[live]'")

from hypothesis import given, settings
from hypothesis import strategies as st
from router_harness import CONFIG, Holding, Never, NoPromise, Routed, raw, routed, run, until
from stub_replica import StubReplica, event, tokens_of

from slo_opt.engine_bridge.middleware import SloMiddleware


def test_a_stream_passes_whole():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.ask()
            assert (answer.status, answer.broken) == (200, False)
            assert answer.header("content-type") == "text/event-stream; charset=utf-8"
            assert tokens_of(answer.body) == ["t0", "t1", "t2", "t3"]
            assert answer.body.endswith(b"data: [DONE]\n\n")
            (call,) = stub.calls
            assert (call.method, call.target) == ("POST", "/v1/completions")
            assert call.document == {"prompt": [1, 2, 3], "max_tokens": 4, "stream": True}

    run(work())


def test_tokens_pass_one_by_one():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            stub.gate = asyncio.Event()
            body = {"prompt": [1], "max_tokens": 3, "stream": True}
            async with at.client.post(f"{at.url}/v1/completions", json=body) as response:
                assert await response.content.readuntil(b"\n\n") == event(0)
                assert not response.content.at_eof()
                stub.gate.set()  # only now does the second token come into being
                assert await response.content.readuntil(b"\n\n") == event(1)
                await response.read()

    run(work())


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[asyncio.Runner, StubReplica, Routed]]:
    """A router that stays up for many drawn streams."""
    with asyncio.Runner() as runner:
        stub = StubReplica()

        async def start() -> tuple[Routed, object]:
            await stub.start()
            context = routed([stub])
            return await context.__aenter__(), context

        at, context = runner.run(start())
        yield runner, stub, at

        async def stop() -> None:
            await context.__aexit__(None, None, None)  # type: ignore[attr-defined]
            await stub.kill()

        runner.run(stop())


STREAM = b"".join(map(event, range(3))) + ': ping\r\n\r\ndata: {"é": 1}\n\ndata: [DONE]\n\n'.encode()


@settings(max_examples=60)
@given(
    text=st.one_of(st.just(STREAM), st.binary(min_size=1, max_size=300)),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_stream_in_any_pieces_passes_byte_for_byte(scripted, text: bytes, cuts: list[int]):
    runner, stub, at = scripted
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    stub.chunks["drawn"] = [piece for start, end in pairwise(edges) if (piece := text[start:end])]
    answer = runner.run(at.ask(x_script="drawn"))
    assert (answer.status, answer.broken) == (200, False)
    assert answer.body == text


@settings(max_examples=40)
@given(body=st.binary(max_size=2000))
def test_any_body_arrives_byte_for_byte(scripted, body: bytes):
    runner, stub, at = scripted
    stub.chunks["short"] = [b"data: [DONE]\n\n"]
    answer = runner.run(at.ask("/v1/embeddings", body, x_script="short", content_type="application/octet-stream"))
    assert answer.status == 200
    assert stub.calls[-1].body == body
    assert stub.calls[-1].header("content-type") == "application/octet-stream"


def test_a_body_larger_than_what_is_sent_at_once():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            ids = list(range(600_000))
            answer = await at.ask(body={"prompt": ids, "stream": False})
            assert answer.status == 200
            assert stub.calls[0].document["prompt"] == ids

    run(work())


def test_headers_pass_both_ways_but_those_of_one_connection():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.ask(
                body={"prompt": "x", "stream": False},
                Authorization="Bearer secret",
                Connection="keep-alive, X-Private",
                X_Private="1",
                TE="trailers",
                Proxy_Authorization="Basic x",
                X_Request_Id="7",
                Accept="text/x",
                User_Agent="mine/1",
                Cookie="c=1",
            )
            (call,) = stub.calls
            for name, value in (
                ("authorization", "Bearer secret"),
                ("x-request-id", "7"),
                ("accept", "text/x"),
                ("user-agent", "mine/1"),
                ("cookie", "c=1"),
                ("host", stub.url.removeprefix("http://")),
            ):
                assert call.header(name) == value
            for name in ("x-private", "te", "proxy-authorization", "connection"):
                assert call.header(name) in (None, "keep-alive")
            assert [value for key, value in answer.headers if key == "Set-Cookie"] == ["a=1", "b=2"]
            assert answer.header("x-number") == "0"
            again = await at.ask(body={"prompt": "x", "stream": False})
            assert again.status == 200
            assert stub.calls[1].header("cookie") is None  # nobody's cookie goes to another

    run(work())


def test_an_answer_in_another_coding_passes_as_it_is():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.ask(body={"prompt": "x", "stream": False}, Accept_Encoding="gzip")
            assert stub.calls[0].header("accept-encoding") == "gzip"
            assert answer.header("content-encoding") is None
            assert json.loads(answer.body)["choices"]

    run(work())


def test_connections_are_used_again():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            for _ in range(5):
                await at.ask(body={"prompt": "x", "stream": False})
            server = stub._runner.server
            assert server is not None
            # One of the router's requests, and perhaps one of a look that is under way.
            assert 1 <= len(server.connections) <= 2

    run(work())


def test_endpoints_of_its_own():
    async def work() -> None:
        async with StubReplica() as one, StubReplica(name="other") as two, routed([one, two]) as at:
            assert (await at.get("/health")).status == 200
            assert (await at.get("/ready")).status == 200
            listed = await at.get("/v1/models")
            assert [row["id"] for row in json.loads(listed.body)["data"]] == ["stub", "other"]
            await at.ask()
            assert (await at.get("/v1/anything?x=%20y")).status == 200
            assert one.calls[-1].target == "/v1/anything?x=%20y"
            await one.kill()
            await two.kill()
            await until(lambda: not at.router.fleet.up)
            assert (await at.get("/health")).status == 200
            ready = await at.get("/ready")
            assert ready.status == 503
            assert int(ready.header("retry-after") or 0) >= 1

    run(work())


def test_a_request_goes_where_its_model_is():
    async def work() -> None:
        async with StubReplica(name="a") as one, StubReplica(name="b") as two, routed([one, two]) as at:
            assert (await at.ask(body={"model": "b", "prompt": [1], "stream": False})).status == 200
            assert [len(one.calls), len(two.calls)] == [0, 1]
            assert (await at.ask(body={"model": "unknown", "prompt": [1], "stream": False})).status == 200
            assert len(one.calls) == 1

    run(work())


@pytest.mark.parametrize(
    "fields",
    [
        {"slo_ttft_ms": "soon", "slo_tpot_ms": 50},
        {"slo_ttft_ms": -1, "slo_tpot_ms": 50},
        {"slo_class": "slak"},
        {"slo_typo_ms": 1},
        {"slo_tpot_ms": 50},
    ],
)
def test_bad_slo_fields_are_answered_as_the_middleware_does(fields: dict):
    async def work() -> None:
        body = json.dumps({"prompt": "x", "vllm_xargs": fields}).encode()
        sent = []

        async def receive() -> dict:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await SloMiddleware(None, CONFIG)(scope, receive, send)  # type: ignore[arg-type]
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.ask(body=body)
            assert answer.status == sent[0]["status"] == 400
            assert json.loads(answer.body) == json.loads(sent[1]["body"])
            assert not stub.calls

    run(work())


def test_slo_headers_are_read_too():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.ask(x_slo_class="slak")
            assert (answer.status, answer.error["param"]) == (400, "slo_class")
            assert "Did you mean 'slack'?" in answer.error["message"]
            answer = await at.ask(x_slo_class="slack")
            assert answer.status == 200
            assert stub.calls[0].header("x-slo-class") == "slack"
            # What Connection names is for this connection alone, and so is not read either.
            answer = await at.ask(x_slo_class="slak", Connection="x-slo-class")
            assert answer.status == 200
            assert stub.calls[1].header("x-slo-class") is None

    run(work())


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/metricsx",
        "/v2/completions",
        "/sleep",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/v1/..%2fsleep",
        "/v1/a/./b",
        "/v1//x",
        "//v1/completions",
        "/v1/a%00b",
        "/v1/é",
        "/v1/a\\..\\b",
    ],
)
def test_nothing_beside_the_api_can_be_reached(path: str):
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            answer = await raw(at.url, head.encode())
            assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.0 400"))
            assert not stub.calls

    run(work())


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/v1/x", "http://user@elsewhere:1/v1/x", "/v1/x"])
def test_neither_target_nor_host_chooses_the_upstream(target: str):
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            head = f"GET {target} HTTP/1.1\r\nHost: elsewhere:9\r\nConnection: close\r\n\r\n"
            answer = await raw(at.url, head.encode())
            assert answer.startswith(b"HTTP/1.1 200")
            (call,) = stub.calls
            assert call.target == "/v1/x"
            assert call.header("host") == stub.url.removeprefix("http://")

    run(work())


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE"])
def test_other_methods(method: str):
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await at.send(method, "/v1/completions", None, {})
            assert (answer.status, answer.header("allow")) == (405, "GET, POST")
            assert not stub.calls

    run(work())


def test_an_oversized_body():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], max_body_bytes=1000) as at:
            stub.chunks["short"] = [b"data: [DONE]\n\n"]
            assert (await at.ask(body=b"x" * 1001, x_script="short")).status == 413
            assert (await at.ask(body=b"x" * 1000, x_script="short")).status == 200
            # Without a length it is known only when it has come.
            chunk = b"1F4\r\n" + b"x" * 500 + b"\r\n"
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await raw(at.url, head + chunk * 3)
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"Connection: close" in answer
            assert len(stub.calls) == 1

    run(work())


def test_a_client_that_asks_before_it_sends():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], max_body_bytes=1000) as at:
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            assert (await raw(at.url, head % 2, until_close=False)).startswith(b"HTTP/1.1 100")
            assert (await raw(at.url, head % 2000)).startswith(b"HTTP/1.1 413")
            assert (await raw(at.url, (head % 2)[:-2] + b"Connection: close\r\n\r\n{}")).count(b"HTTP/1.1 ") == 2
            assert stub.calls[-1].body == b"{}"
            assert stub.calls[-1].header("expect") is None

    run(work())


def test_slow_clients_are_answered_408():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], read_timeout_s=1.0) as at:
            assert await raw(at.url, b"") == b""
            assert (await raw(at.url, b"POST /v1/comple")).startswith(b"HTTP/1.1 408")
            assert (await raw(at.url, b"GET /health HTTP/1.1\r\nHost: x\r\nX-A")).startswith(b"HTTP/1.1 408")
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"
            answer = await raw(at.url, head)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body did not come" in answer
            # A further head on the same connection has its time, too.
            host, _, port = at.url.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /hea")
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
            writer.close()
            assert not stub.calls
            assert not at.router.in_flight

    run(work())


def test_an_idle_connection_outlives_the_time_for_a_head():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], read_timeout_s=0.5) as at:
            host, _, port = at.url.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            for _ in range(2):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(1.0)
            writer.close()

    run(work())


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n",
        b"GET /v1/x HTTP/9.9\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 2_000 + b"\r\n",
    ],
)
def test_what_is_no_http_reaches_nobody(text: bytes):
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            answer = await raw(at.url, text)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
            assert not stub.calls
            assert (await at.ask()).status == 200

    run(work())


def test_a_header_that_is_no_text_harms_nobody():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            head = b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-Odd: \xff\xfe\r\nConnection: close\r\n\r\n"
            assert (await raw(at.url, head)).startswith(b"HTTP/1.1 400")
            assert at.router.fleet.up
            assert not stub.calls

    run(work())


def test_a_client_of_http_1_0():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            body = json.dumps({"prompt": [1], "max_tokens": 2, "stream": True}).encode()
            head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
            answer = await raw(at.url, head + body)
            assert b"chunked" not in answer.partition(b"\r\n\r\n")[0].lower()
            assert tokens_of(answer) == ["t0", "t1"]

    run(work())


def test_the_limit_of_requests_at_once():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], max_concurrency=2) as at:
            stub.gate = asyncio.Event()
            under_way = [asyncio.create_task(at.ask()) for _ in range(2)]
            await until(lambda: stub.open == 2)
            answer = await at.ask()
            assert (answer.status, answer.header("retry-after")) == (503, "1")
            assert "limit" in answer.error["message"]
            assert (await at.get("/health")).status == 200
            stub.gate.set()
            assert [(await task).status for task in under_way] == [200, 200]
            assert (await at.ask()).status == 200

    run(work())


def test_a_client_that_leaves_ends_the_generation():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            stub.gate = asyncio.Event()
            body = {"prompt": [1], "max_tokens": 3, "stream": True, "vllm_xargs": {"slo_class": "slack"}}
            async with at.client.post(f"{at.url}/v1/completions", json=body) as response:
                await response.content.readuntil(b"\n\n")
                response.close()
            await until(lambda: stub.calls[0].ended == "left")
            await until(lambda: not at.router.in_flight)
            assert await at.metric("slo_opt_router_requests_total", answer="left") in (0.0, 1.0)

    run(work())


def test_a_client_that_leaves_before_the_first_token_ends_it_too():
    async def work() -> None:
        async with StubReplica(behave=lambda call: "hang") as stub, routed([stub]) as at:
            asking = asyncio.create_task(at.ask())
            await until(lambda: len(stub.calls) == 1 and stub.calls[0].body != b"")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: stub.calls[0].ended == "left")
            await until(lambda: not at.router.in_flight)

    run(work())


def test_held_requests_are_asked_about_again():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], "router_harness:Holding") as at:
            answer = await at.ask()
            assert tokens_of(answer.body) == ["t0", "t1", "t2", "t3"]
            policy = at.router.fleet.policy
            assert isinstance(policy, Holding)
            ((first, second, third),) = policy.asked.values()
            assert first + 0.01 <= second
            assert second + 0.01 <= third
            assert len(stub.calls) == 1

    run(work())


def test_nobody_is_held_for_ever():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], "router_harness:Never", max_hold_s=0.05) as at:
            assert isinstance(at.router.fleet.policy, Never)
            answer = await at.ask()
            assert answer.status == 503
            assert int(answer.header("retry-after") or 0) >= 1
            assert not stub.calls

    run(work())


def test_a_request_without_a_promise_says_so_to_its_engine():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], "router_harness:NoPromise") as at:
            assert isinstance(at.router.fleet.policy, NoPromise)
            await at.ask(x_slo_class="slack")
            assert stub.calls[0].header("x-slo-best-effort") == "true"

    run(work())


def test_a_policy_that_fails_stops_nobody():
    async def work() -> None:
        async with StubReplica() as one, StubReplica() as two, routed([one, two], "router_harness:Failing") as at:
            answers = [await at.ask() for _ in range(4)]
            assert [answer.status for answer in answers] == [200] * 4

    run(work())


@pytest.mark.parametrize("policy", ["round-robin", "least-loaded", "join-shortest-queue", "lmetric"])
def test_shipped_policies_route(policy: str):
    async def work() -> None:
        async with StubReplica() as one, StubReplica() as two, routed([one, two], policy) as at:
            one.gate = two.gate = asyncio.Event()
            asking = [asyncio.create_task(at.ask()) for _ in range(6)]
            await until(lambda: one.open + two.open == 6)
            assert one.open >= 1
            assert two.open >= 1
            one.gate.set()
            assert [(await task).status for task in asking] == [200] * 6

    run(work())


def test_metrics_tell_what_happened():
    pytest.importorskip("prometheus_client")

    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            for slo in ("slack", "slack", "strict"):
                await at.ask(x_slo_class=slo)
            await at.ask(x_slo_class="strict", body={"prompt": [1], "stream": False})
            await at.ask(x_slo_class="slack", body={"prompt": [1], "stream": False})
            await at.ask()
            await at.ask(x_slo_class="no")
            expected = {
                ("slo_opt_router_requests_total", "slo", "slack"): 3,
                ("slo_opt_router_requests_total", "answer", "finished"): 6,
                ("slo_opt_router_requests_total", "answer", "invalid"): 1,
                ("slo_opt_router_offered_total", "slo", "slack"): 3,
                ("slo_opt_router_attained_total", "slo", "slack"): 3,
                ("slo_opt_router_offered_total", "slo", "strict"): 2,
                ("slo_opt_router_attained_total", "slo", "strict"): 0,
                ("slo_opt_router_offered_total", "slo", "default"): 0,
                ("slo_opt_router_up", "replica", stub.url): 1,
                ("slo_opt_router_in_flight", "replica", stub.url): 0,
            }
            for (name, label, value), count in expected.items():
                assert await at.metric(name, **{label: value}) == count, (name, value)
            assert await at.metric("slo_opt_router_overhead_seconds_count") == 6
            assert await at.metric("slo_opt_router_decision_seconds_count") == 6

    run(work())


def test_the_policy_learns_lengths():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            await at.ask(x_slo_class="slack")
            await at.ask(x_slo_class="strict", body={"prompt": [1], "stream": False})
            ends = at.router.fleet.policy.ends  # type: ignore[attr-defined]
            assert [(end.round_slo, end.output_tokens, end.missed) for end in ends] == [
                ("slack", 4, False),
                ("strict", 3, True),
            ]

    run(work())


def test_books_take_over_what_the_engine_tells():
    async def work() -> None:
        report = (
            'vllm:num_requests_running{engine="0"} 3.0\nvllm:kv_cache_usage_perc{engine="0"} 0.5\n'
            'vllm:cache_config_info{block_size="32",num_gpu_blocks="200"} 1.0\n'
        )
        async with StubReplica(metrics=report) as stub, routed([stub]) as at:
            (replica,) = at.router.fleet.replicas
            view = replica.books.view
            assert (view.engine.kv_blocks, view.engine.block_size_tokens) == (200, 32)
            assert view.engine.max_model_len == 4096
            assert (view.free_kv_blocks, view.num_requests) == (100, 3)
            stub.metrics = "vllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0.0\n"
            await until(lambda: view.idle and view.free_kv_blocks == 200)

    run(work())
