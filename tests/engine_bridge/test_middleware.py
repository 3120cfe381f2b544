"""SLO headers, bodies and refusals, as an application behind the middleware and a client before it see them."""

import asyncio
import gc
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from asgi import DISCONNECT, Exchange, as_parts, ok, post_scope, through
from hypothesis import assume, given
from hypothesis import strategies as st

from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.config_checks import ConfigError
from slo_opt.engine_bridge.middleware import SloMiddleware
from slo_opt.engine_bridge.refusal import REFUSED, refusal_text, retry_after_of, watch
from slo_opt.engine_bridge.slo_body import ENDPOINTS, HEADERS
from slo_opt.engine_bridge.slo_fields import FIELDS, SloFieldError, request_slo

CLASSES = {"chat": LiveClass("chat", ttft_ms=500, tpot_ms=50), "batch": LiveClass("batch", best_effort=True)}
CONFIG = BridgeConfig(classes=CLASSES)
REFUSE = BridgeConfig(classes=CLASSES, on_unattainable="refuse", retry_after_s=9)
PAGE = Path(__file__).parents[2] / "docs/slo-fields.md"
PLAIN = b'{"model": "m",\n "prompt": [1, 2]}'
CHAT = b'{"prompt":"a","vllm_xargs":{"slo_class":"chat"}}'


def intake(body, *, cuts=(), config=CONFIG, messages=None, most=None, **how) -> Exchange:
    """One request through the middleware."""

    def wrap(application):
        return SloMiddleware(application, config, **({} if most is None else {"max_body_bytes": most}))

    return asyncio.run(through(wrap, as_parts(body, cuts) if messages is None else messages, **how))


def untouched(exchange: Exchange, body: bytes) -> bool:
    return exchange.status == 200 and exchange.body_in == body and exchange.sent[1]["body"] == b"{}"


# What passes.


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"slo_ttft_ms"',
        b"\xff\xfe slo_",
        b'{"vllm_xargs": "slo_"}',
        b'{"vllm_xargs": null, "prompt": "slo_"}',
        b'{"vllm_xargs": {"other": {"slo_": 1}}}',
        b'{"prompt": "the slo_ttft_ms field"}',
        b'{"prompt": "slo_", "x": NaN}',
        b'{"prompt": "slo_", "n": ' + b"9" * 5000 + b"}",
        b'{"vllm_xargs": {"slo_ttft_ms": ' + b"9" * 5000 + b"}}",
        b'{"vllm_xargs": {"slo_class": "\xff"}}',
        b'{"vllm_xargs": {"x": ' + b"[" * 90_000 + b"]" * 90_000 + b', "slo_class": "chat"}}',
        b"slo_" + b"[" * 200_000,
    ],
)
def test_a_body_without_slo_fields_passes_byte_for_byte(body):
    exchange = intake(body, cuts=(3, 9))
    assert untouched(exchange, body)
    assert exchange.received == as_parts(body, (3, 9))


def test_a_body_with_good_fields_passes_byte_for_byte():
    body = b'{ "vllm_xargs" : {"slo_class": "chat", "slo_tpot_ms": "30", "x": [1]} }'
    assert untouched(intake(body), body)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/v1/completions/render", "/", "/v1/audio/x"])
def test_other_endpoints_pass_whatever_they_hold(path):
    body = b'{"vllm_xargs": {"slo_ttft_ms": -1}}'
    assert untouched(intake(body, path=path, headers=[("x-slo-ttft-ms", "-1")]), body)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_connections_pass(kind):
    scope = {"type": kind, "path": "/v1/completions", "headers": []}
    exchange = intake(b"", messages=[], scope=scope)
    assert exchange.scope is scope


def test_get_passes():
    scope = {**post_scope("/v1/completions", [], []), "method": "GET"}
    assert intake(b"", messages=as_parts(b""), scope=scope).scope is scope


def test_a_client_that_leaves_while_it_sends_is_the_applications_affair():
    messages = [{"type": "http.request", "body": b'{"vllm_xargs": {"slo_', "more_body": True}, DISCONNECT]
    for headers in ([], [("x-slo-class", "chat")]):
        exchange = intake(b"", messages=messages, headers=headers)
        assert exchange.received == messages
        assert exchange.sent == []


def test_a_long_body_passes_unread():
    body = b'{"vllm_xargs": {"slo_ttft_ms": -1}}'
    for cuts in ((), (4, 20)):
        assert untouched(intake(body, cuts=cuts, most=16), body)


def test_a_long_body_cannot_take_headers():
    exchange = intake(PLAIN, cuts=(4, 20), most=16, headers=[("x-slo-class", "chat")])
    assert exchange.scope is None
    assert exchange.status == 413
    assert exchange.error["param"] == "slo_class"


# Headers.


@pytest.mark.parametrize("path", [*ENDPOINTS, "/prefix/v1/chat/completions"])
def test_headers_are_written_where_the_engine_reads(path):
    place = ENDPOINTS[path.removeprefix("/prefix")]
    body = {"model": "m", "sampling_params": {"n": 2}, "n": 3, "text": "é"}
    headers = [("X-SLO-TTFT-MS", " 500 "), ("x-slo-tpot-ms", "50"), ("x-slo-class", "chat"), ("x-request-id", "7")]
    exchange = intake(json.dumps(body).encode(), path=path, cuts=(5,), headers=headers)
    assert exchange.status == 200
    seen = json.loads(exchange.body_in)
    holder = seen
    for key in place[:-1]:
        holder = holder[key]
    assert holder.pop(place[-1]) == {"slo_ttft_ms": "500", "slo_tpot_ms": "50", "slo_class": "chat"}
    assert seen == body
    lengths = [value for name, value in exchange.scope["headers"] if name == b"content-length"]
    assert lengths == [str(len(exchange.body_in)).encode()]
    assert (b"x-request-id", b"7") in exchange.scope["headers"]


def test_a_chunked_body_becomes_one_of_known_length():
    scope = post_scope("/v1/completions", [], [("Transfer-Encoding", "chunked"), ("x-slo-class", "chat")])
    scope["headers"] = [line for line in scope["headers"] if line[0] != b"content-length"]
    exchange = intake(b"", messages=as_parts(PLAIN, (1, 2)), scope=scope)
    names = [name.lower() for name, _ in exchange.scope["headers"]]
    assert b"transfer-encoding" not in names
    assert names.count(b"content-length") == 1
    assert json.loads(exchange.body_in)["vllm_xargs"] == {"slo_class": "chat"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"logit_bias": NaN}',
        b'{"n": ' + b"9" * 400 + b"}",
        b'{"temperature": 1e999}',
        b'\xef\xbb\xbf{"n": 1}',
        '{"n": 1}'.encode("utf-16"),
        b'{"n": 1, "n": 2}',
    ],
)
def test_headers_change_nothing_else_of_what_a_server_reads(body):
    exchange = intake(body, headers=[("x-slo-class", "chat")])
    assert exchange.status == 200
    seen = json.loads(exchange.body_in)
    assert seen.pop("vllm_xargs") == {"slo_class": "chat"}
    assert repr(seen) == repr(json.loads(body))


def test_a_long_prompt_stays_as_it_is_written():
    prompt = b"[1,  2,\t3e0, 1.50]"
    seen = intake(b'{"prompt": ' + prompt + b', "n":2}', headers=[("x-slo-class", "chat")]).body_in
    assert prompt in seen


def test_the_body_goes_before_headers_field_by_field():
    body = b'{"vllm_xargs": {"slo_ttft_ms": 300, "x": 1}}'
    headers = [("x-slo-ttft-ms", "soon"), ("x-slo-class", "chat")]
    seen = json.loads(intake(body, headers=headers).body_in)
    assert seen == {"vllm_xargs": {"slo_ttft_ms": 300, "x": 1, "slo_class": "chat"}}


def test_headers_that_the_body_repeats_leave_it_as_it_is():
    assert untouched(intake(CHAT, headers=[("x-slo-class", "batch")]), CHAT)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"vllm_xargs": 5}', b"\xff"])
def test_headers_of_a_body_that_the_server_refuses_anyway(body):
    assert untouched(intake(body, headers=[("x-slo-class", "chat")]), body)


def test_an_absent_object_is_not_made_up():
    for body in (b"{}", b'{"sampling_params": 5}'):
        assert untouched(intake(body, path="/inference/v1/generate", headers=[("x-slo-class", "chat")]), body)


# 400.


@pytest.mark.parametrize(
    ("headers", "param", "told"),
    [
        ([("x-slo-ttft-ms", "soon"), ("x-slo-tpot-ms", "50")], "slo_ttft_ms", "is 'soon'"),
        ([("x-slo-ttft-ms", ""), ("x-slo-tpot-ms", "50")], "slo_ttft_ms", "is ''"),
        ([("x-slo-ttft-ms", "500, 600"), ("x-slo-tpot-ms", "50")], "slo_ttft_ms", "is '500, 600'"),
        ([("x-slo-ttft-ms", "500"), ("x-slo-ttft-ms", "500")], "slo_ttft_ms", "two headers"),
        ([("x-slo-ttft-ms", "500")], "slo_tpot_ms", "is missing"),
        ([("x-slo-class", "chta")], "slo_class", "Did you mean 'chat'?"),
        ([("x-slo-best-effort", "perhaps")], "slo_best_effort", "true or false"),
        ([("x-slo-tpot", "50")], "x-slo-tpot", "Did you mean 'x-slo-tpot-ms'?"),
        ([("x-slo-\xff", "50")], "x-slo-\xff", "is no SLO header"),
    ],
)
def test_a_header_that_means_nothing(headers, param, told):
    exchange = intake(PLAIN, headers=headers)
    assert exchange.scope is None, "it reached the server"
    assert exchange.status == 400
    assert exchange.error["param"] == param
    assert told in exchange.error["message"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"slo_ttft_ms": True, "slo_tpot_ms": 50}, "slo_ttft_ms"),
        ({"slo_ttft_ms": 500, "slo_tpot_ms": {"ms": 50}}, "slo_tpot_ms"),
        ({"slo_ttft_ms": 500, "slo_tpot_ms": [50]}, "slo_tpot_ms"),
        ({"slo_ttft_ms": 500, "slo_tpot_ms": float("nan")}, "slo_tpot_ms"),
        ({"slo_class": "caht"}, "slo_class"),
        ({"slo_clas": "chat"}, "slo_clas"),
        ({"slo_": "\ud800"}, "slo_"),
    ],
)
def test_a_field_that_means_nothing(path, fields, param):
    body = fields
    for key in reversed(ENDPOINTS[path]):
        body = {key: body}
    exchange = intake(json.dumps(body).encode(), path=path, cuts=(7,))
    assert exchange.scope is None, "it reached the server"
    assert exchange.status == 400
    assert exchange.error == {
        "message": exchange.error["message"],
        "type": "BadRequestError",
        "param": param,
        "code": 400,
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"slo_ttft_ms": 500}),
        ("/inference/v1/generate", {"sampling_params": {"slo_ttft_ms": 500}}),
        ("/inference/v1/generate", {"slo_ttft_ms": 500}),
    ],
)
def test_a_field_out_of_place_would_be_lost(path, body):
    exchange = intake(json.dumps(body).encode(), path=path)
    assert exchange.status == 400
    assert exchange.error["param"] == "slo_ttft_ms"
    assert ".".join(ENDPOINTS[path]) in exchange.error["message"]


def test_the_configuration_comes_from_the_environment(monkeypatch, tmp_path):
    (tmp_path / "a.toml").write_text("[classes.own]\nttft_ms = 5\ntpot_ms = 5\n")
    monkeypatch.setenv("SLO_OPT_CONFIG", str(tmp_path / "a.toml"))
    body = b'{"vllm_xargs": {"slo_class": "own"}}'
    assert untouched(asyncio.run(through(SloMiddleware, as_parts(body))), body)
    monkeypatch.setenv("SLO_OPT_CONFIG", str(tmp_path / "b.toml"))
    with pytest.raises(ConfigError):
        SloMiddleware(ok)


# Anything at all.

TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NEAR = st.sampled_from([*FIELDS, "slo_x", "session_id"])
VALUES = JSON | st.sampled_from(["chat", "batch", "500", 50, 20.5, True])
XARGS = st.dictionaries(NEAR, VALUES, max_size=3)
BODIES = st.one_of(
    JSON,
    st.fixed_dictionaries({"prompt": JSON}, optional={"vllm_xargs": XARGS | JSON, "n": st.just(2)}),
)
HEADER_LINES = st.lists(
    st.tuples(
        st.sampled_from([*HEADERS, "x-slo-x", "accept"]),
        st.sampled_from(["500", "50", "chat", "batch", "true"]) | st.text(st.characters(max_codepoint=255), max_size=6),
    ),
    max_size=3,
)
CUTS = st.lists(st.integers(0, 60), max_size=3)


@given(
    body=BODIES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), headers=HEADER_LINES, cuts=CUTS
)
def test_any_request_passes_gets_its_headers_or_is_named_an_error(body, headers, cuts):
    exchange = intake(body, cuts=cuts, headers=headers)
    ours = {HEADERS[name]: value.strip() for name, value in headers if name in HEADERS}
    if exchange.status == 400:
        assert exchange.scope is None
        assert exchange.error["param"]
        return
    assert exchange.status == 200
    if not ours:
        assert exchange.received == as_parts(body, cuts)
    elif exchange.body_in != body:
        before, after = json.loads(body), json.loads(exchange.body_in)
        merged = {**ours, **(before.pop("vllm_xargs", None) or {})}
        assert repr(after.pop("vllm_xargs")) == repr(merged)
        assert repr(after) == repr(before)
        request_slo(merged, CONFIG)


@given(xargs=XARGS, headers=HEADER_LINES)
def test_it_refuses_exactly_what_the_fields_refuse(xargs, headers):
    assume(all(name in HEADERS for name, _ in headers))
    assume(len({name for name, _ in headers}) == len(headers))
    body = json.dumps({"vllm_xargs": xargs}).encode()
    merged = {HEADERS[name]: value.strip() for name, value in headers} | json.loads(body)["vllm_xargs"]
    exchange = intake(body, headers=headers)
    try:
        request_slo(merged, CONFIG)
    except SloFieldError as error:
        expected = (400, error.field)
    else:
        expected = (200, None)
    assert (exchange.status, exchange.error["param"] if exchange.status == 400 else None) == expected


# 429.


@dataclass
class Output:
    """The part of vLLM's CompletionOutput that tells whether a request was refused."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


def tokens(count=1, **how) -> SimpleNamespace:
    return SimpleNamespace(outputs=[Output(list(range(count)), **how)])


def ended(reason="abort", stop=None) -> SimpleNamespace:
    return SimpleNamespace(outputs=[Output([], reason, stop)])


REFUSAL = refusal_text("no room before its deadline", 2.2)


class Engine:
    """An engine client: yields the given results, and knows whether its generator was closed."""

    def __init__(self, results):
        self.results = results
        self.closed = 0

    async def generate(self, prompt, *, index=0):
        try:
            for result in self.results[index]:
                await asyncio.sleep(0)
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self.closed += 1


def start(status=200, kind=b"text/event-stream"):
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), (b"x-own", b"1")]}


def chunk(data: bytes, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


def streams(engine, *, first=(), usage=False, role=True):
    """As vLLM streams: headers at once, the role with the first result, no chunk for a result without tokens."""

    async def reply(exchange):
        yield start()
        for data in first:
            yield chunk(data)
        said = not role
        try:
            for index in range(len(engine.results)):
                async for result in engine.generate("p", index=index):
                    if not said:
                        said = True
                        yield chunk(b"data: role\n\n")
                    for output in result.outputs:
                        if output.token_ids:
                            yield chunk(b"data: token\n\n")
        except RuntimeError:
            yield chunk(b"data: error\n\n")
        if usage:
            yield chunk(b"data: usage\n\n")
        yield chunk(b"data: [DONE]\n\n")
        yield chunk(b"", more=False)

    return reply


def answers(engine):
    """As vLLM answers without a stream: everything at the end."""

    async def reply(exchange):
        found = [result for index in range(len(engine.results)) async for result in engine.generate("p", index=index)]
        yield start(kind=b"application/json")
        yield chunk(json.dumps([output.stop_reason for output in found[-1].outputs]).encode(), more=False)

    return reply


def passed(reply, engine, **how):
    """The same request with and without the middleware: nothing may differ."""
    plain = asyncio.run(through(lambda application: application, as_parts(CHAT), reply=reply, engine_client=engine))
    seen = intake(CHAT, config=REFUSE, reply=reply, engine_client=engine, **how)
    return seen.sent == plain.sent and seen.status == 200


@pytest.mark.parametrize("how", [{}, {"usage": True}, {"role": False}, {"first": (b"event: created\n\n",)}])
def test_a_refused_stream_is_a_429(how):
    engine = Engine([[ended(stop=REFUSAL)]])
    exchange = intake(CHAT, config=REFUSE, reply=streams(engine, **how), engine_client=engine)
    assert exchange.status == 429
    assert exchange.headers["retry-after"] == "3"
    assert exchange.headers["x-own"] == "1"
    assert exchange.error == {"message": REFUSAL, "type": "RateLimitError", "param": None, "code": 429}
    assert engine.closed == 1


def test_a_refused_answer_is_a_429():
    engine = Engine([[ended(stop=REFUSAL)]])
    exchange = intake(CHAT, config=REFUSE, reply=answers(engine), engine_client=engine)
    assert (exchange.status, exchange.headers["retry-after"]) == (429, "3")


def test_the_configured_wait_where_the_reason_names_none():
    engine = Engine([[ended(stop=REFUSED + ": too many")]])
    exchange = intake(CHAT, config=REFUSE, reply=answers(engine), engine_client=engine)
    assert (exchange.status, exchange.headers["retry-after"]) == (429, "9")


@pytest.mark.parametrize(
    "results",
    [
        [[tokens(), tokens(), tokens(0, finish_reason="stop")]],
        [[tokens(4, finish_reason="length")]],
        [[ended("abort")]],
        [[ended("stop", stop=5)]],
        [[ended("abort", stop="slo-opt: malformed: slo_ttft_ms")]],
        [[tokens(), ended("abort", stop=REFUSAL)]],
        [[tokens(2, finish_reason="abort", stop_reason=REFUSAL)]],
        [[ended(stop=REFUSAL)], [tokens()]],
        [[tokens()], [ended(stop=REFUSAL)]],
        [[SimpleNamespace(outputs=[Output([], "abort", REFUSAL), Output([5], "stop")])]],
        [[RuntimeError("engine")]],
        [[]],
    ],
    ids=str,
)
def test_whatever_else_happens_passes_unchanged(results):
    engine = Engine(results)
    assert passed(streams(engine), engine)
    if results[-1] and not isinstance(results[-1][-1], Exception):
        assert passed(answers(engine), engine)


def test_two_refused_choices_are_one_429():
    engine = Engine([[ended(stop=REFUSAL)], [ended(stop=REFUSAL)]])
    assert intake(CHAT, config=REFUSE, reply=streams(engine), engine_client=engine).status == 429


def test_the_first_token_is_not_held_back():
    """The client has headers and first chunk before the second token exists."""
    gate = asyncio.Event()

    class Waits(Engine):
        async def generate(self, prompt, *, index=0):
            yield tokens()
            await gate.wait()
            yield tokens(1, finish_reason="stop")

    engine = Waits([[]])
    sent = []

    async def application(scope, receive, send):
        async for message in streams(engine)(None):
            await send(message)

    async def client():
        async def receive():
            return as_parts(CHAT)[0]

        async def send(message):
            sent.append(message)
            if message.get("body") == b"data: token\n\n":
                gate.set()

        scope = post_scope("/v1/completions", as_parts(CHAT), [])
        scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
        await asyncio.wait_for(SloMiddleware(application, REFUSE)(scope, receive, send), 10)

    asyncio.run(client())
    assert [message.get("body", b"") for message in sent[:3]] == [b"", b"data: role\n\n", b"data: token\n\n"]


def test_a_keep_alive_comment_settles_the_status():
    engine = Engine([[ended(stop=REFUSAL)]])
    exchange = intake(CHAT, config=REFUSE, reply=streams(engine, first=(b": keep-alive\n\n",)), engine_client=engine)
    assert exchange.status == 200


def test_an_error_of_the_server_passes():
    async def reply(exchange):
        yield start(404, b"application/json")
        yield chunk(b"{}", more=False)

    exchange = intake(CHAT, config=REFUSE, reply=reply, engine_client=Engine([]))
    assert (exchange.status, exchange.body) == (404, b"{}")


def test_an_application_that_fails_fails():
    async def reply(exchange):
        yield start()
        raise KeyError("defect")

    with pytest.raises(KeyError):
        intake(CHAT, config=REFUSE, reply=reply, engine_client=Engine([]))


@pytest.mark.parametrize(
    ("body", "config"),
    [(PLAIN, REFUSE), (b'{"vllm_xargs":{"slo_class":"batch"}}', REFUSE), (b"{", REFUSE), (CHAT, CONFIG)],
)
def test_nothing_is_held_back_where_nothing_can_be_refused(body, config):
    """Headers reach the client at once; the engine client is left as it is."""
    engine = Engine([[ended(stop=REFUSAL)]])
    exchange = intake(body, config=config, reply=streams(engine), engine_client=engine)
    assert exchange.status == 200
    assert "generate" not in vars(engine)


def test_a_default_class_with_limits_is_watched_too():
    config = BridgeConfig(classes=CLASSES, default_class="chat", on_unattainable="refuse")
    engine = Engine([[ended(stop=REFUSAL)]])
    assert intake(PLAIN, config=config, reply=streams(engine), engine_client=engine).status == 429


def test_without_an_engine_client_everything_passes_and_one_warning_says_so(caplog):
    async def application(scope, receive, send):
        async for message in streams(Engine([[ended(stop=REFUSAL)]]))(None):
            await send(message)

    middleware = SloMiddleware(application, REFUSE)
    with caplog.at_level(logging.WARNING, "slo_opt"):
        for _ in range(2):
            exchange = asyncio.run(through(lambda _: middleware, as_parts(CHAT)))
    assert exchange.status == 200
    assert len(caplog.records) == 1
    assert not watch(None)
    assert not watch(SimpleNamespace(generate=5))
    assert not watch(("no", "attributes"))


def test_watching_twice_is_watching_once():
    engine = Engine([[tokens()]])
    assert watch(engine)
    first = engine.generate
    assert watch(engine)
    assert engine.generate is first


def test_a_generation_that_is_dropped_is_closed_at_once():
    """vLLM aborts a request when its generator is closed: that must not wait."""
    engine = Engine([[tokens(), tokens(), tokens()]])

    async def reply(exchange):
        results = engine.generate("p")
        async for _ in results:
            break
        await results.aclose()
        assert engine.closed == 1
        yield start()
        yield chunk(b"", more=False)

    assert intake(CHAT, config=REFUSE, reply=reply, engine_client=engine).status == 200
    gc.collect()


def test_requests_at_once_do_not_mix():
    refused = {3, 4, 8}

    class Own(Engine):
        async def generate(self, prompt, *, index=0):
            await asyncio.sleep(0.001 * (index % 3))
            yield ended(stop=REFUSAL) if index in refused else tokens(1, finish_reason="stop")

    engine = Own([])

    async def one(number):
        async def reply(exchange):
            yield start()
            async for result in engine.generate("p", index=number):
                if result.outputs[0].token_ids:
                    yield chunk(b"data: token\n\n")
            yield chunk(b"", more=False)

        return (
            await through(lambda app: SloMiddleware(app, REFUSE), as_parts(CHAT), reply=reply, engine_client=engine)
        ).status

    async def all_of_them():
        return await asyncio.gather(*(asyncio.create_task(one(number)) for number in range(12)))

    statuses = asyncio.run(all_of_them())
    assert [number for number, status in enumerate(statuses) if status == 429] == sorted(refused)


@given(why=st.text(max_size=20), wait_s=st.floats(0, 1e8))
def test_a_refusal_tells_its_wait(why, wait_s):
    text = refusal_text(why, wait_s)
    assert text.startswith(REFUSED)
    assert retry_after_of(text, 5) == max(1, math.ceil(wait_s))
    assert retry_after_of(REFUSED, 5) == 5


RESULTS = st.lists(
    st.sampled_from([tokens(), tokens(0), tokens(1, finish_reason="stop"), ended(), ended(stop=REFUSAL)]), max_size=4
)


@given(results=st.lists(RESULTS, min_size=1, max_size=3), usage=st.booleans(), role=st.booleans())
def test_any_stream_is_either_unchanged_or_a_429(results, usage, role):
    engine = Engine(results)
    reply = streams(engine, usage=usage, role=role)
    plain = asyncio.run(through(lambda app: app, as_parts(CHAT), reply=reply, engine_client=Engine(results)))
    seen = intake(CHAT, config=REFUSE, reply=reply, engine_client=engine)
    outputs = [output for run in results for result in run for output in result.outputs]
    refused = any(output.stop_reason == REFUSAL for output in outputs)
    others = any(output.token_ids or (output.finish_reason and output.stop_reason != REFUSAL) for output in outputs)
    if refused and not others:
        assert seen.status == 429
    else:
        assert seen.sent == plain.sent


def test_every_header_is_documented():
    page = PAGE.read_text()
    for header in HEADERS:
        assert f"`{header}`" in page
