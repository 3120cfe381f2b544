"""The load generator against a server that streams, stalls, refuses and breaks off on demand."""

import asyncio
import contextlib
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'slo-opt[live]'")

from stub_server import FIRST_TOKEN, StubServer

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Prefix, Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.replay.call import Outcome
from slo_opt.replay.count_by import CountBy
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.result import ReplayRun
from slo_opt.replay.run import NothingSentError, replay, replay_async
from slo_opt.replay.server import UnusableServerError
from slo_opt.replay.slo_fields import SloFields

ENGINE = engine_named("llama-3-8b-h100")
DAY_MS = 86_400_000.0
CLASSES = {
    "slack": SloClass("slack", tpot_ms=DAY_MS, ttft_ms=DAY_MS),
    "strict": SloClass("strict", tpot_ms=1e-6, ttft_ms=1e-6),
    "spare": SloClass("spare", tpot_ms=1, ttft_ms=1, best_effort=True),
}


def plain(count: int, slo: str = "slack", gap_s: float = 0.002, tokens: int = 4) -> Instance:
    """Requests of one round, evenly spaced; the first arrives late, which nobody has to wait for."""
    requests = tuple(Request(f"r{k}", 1000 + gap_s * k, (Stage(20 + k, tokens, slo),)) for k in range(count))
    return Instance("plain", requests, CLASSES, ENGINE)


def of_stages(*stages: Stage, prefix: Prefix | None = None) -> Instance:
    """One request."""
    return Instance("one", (Request("r", 0.0, stages, prefix),), CLASSES, ENGINE)


def outcomes(run: ReplayRun) -> dict[Outcome, int]:
    return dict(Counter(request.outcome for request in run.requests))


def test_every_request_is_sent_and_scored():
    instance = plain(30)
    half = [replace(request, stages=(replace(request.stages[0], slo="strict"),)) for request in instance.requests[::2]]
    mixed = sorted((*half, *instance.requests[1::2]), key=lambda request: request.arrival_s)
    instance = instance.with_requests(tuple(mixed))
    with StubServer() as server:
        run = replay(instance, server.url)
    metrics = run.metrics()
    rows = {row.name: row for row in metrics.classes}
    assert (rows["slack"].offered, rows["slack"].attained) == (15, 15)
    assert (rows["strict"].offered, rows["strict"].attained) == (15, 0)
    assert metrics.total.attainment == 0.5
    assert metrics.drained
    assert (metrics.num_output_tokens, metrics.num_estimated, metrics.num_calls) == (30 * 4, 0, 30)
    assert metrics.num_prompt_tokens == sum(request.prompt_tokens for request in instance.requests)
    assert metrics.num_cached_tokens == 30 * 7
    assert (metrics.lateness_ms.count, metrics.total.ttft_ms.count) == (30, 30)
    for request, served in zip(instance.requests, run.requests, strict=True):
        (only,) = served.rounds
        assert only.due_s == request.arrival_s <= only.sent_s
        assert list(only.tokens_s) == sorted(only.tokens_s)
        assert only.tokens_s[0] > only.sent_s
    sent = {len(call.body["prompt"]): call.body for call in server.calls}
    assert sent.keys() == {request.prompt_tokens for request in instance.requests}
    body = sent[20]
    assert body["max_tokens"] == 4
    assert (body["ignore_eos"], body["stream"], body["temperature"]) == (True, True, 0)
    assert body["vllm_xargs"] == {"slo_class": "strict", "slo_ttft_ms": 1e-6, "slo_tpot_ms": 1e-6}
    assert "priority" not in body


@pytest.mark.parametrize("wrong", ["silent", "pings"])
def test_requests_are_sent_whatever_the_server_does(wrong: str):
    with StubServer(behave=lambda call: wrong) as server:
        run = replay(plain(20), server.url, ReplayOptions(timeout_s=3.0))
    assert server.most_at_once == 20
    assert outcomes(run) == {Outcome.FAILED: 20}
    assert run.causes(Outcome.FAILED) == [("timeout after 3 s", 20)]
    assert run.metrics().num_throttled == 0
    assert run.metrics().total.ttft_ms.p99 is None


def test_the_limit_on_calls_under_way_holds_and_is_reported():
    with StubServer(step_s=0.02) as server:
        run = replay(plain(9, gap_s=0.0), server.url, ReplayOptions(max_concurrency=2))
    assert server.most_at_once <= 2
    assert run.metrics().num_throttled == 7
    assert outcomes(run) == {Outcome.FINISHED: 9}


WRONG = {
    1: ("429", Outcome.REFUSED, "HTTP 429: cannot be attained"),
    2: ("503-later", Outcome.REFUSED, "HTTP 503: busy"),
    3: ("503", Outcome.FAILED, "HTTP 503: busy"),
    4: ("400", Outcome.FAILED, "HTTP 400: vllm_xargs: slo_class is 'x'"),
    5: ("disconnect", Outcome.FAILED, "connection lost in the middle of the stream"),
    6: ("error", Outcome.FAILED, "the server reports an error: engine died"),
    7: ("short", Outcome.FAILED, "too few tokens, finish_reason length"),
    8: ("long", Outcome.FAILED, "5 tokens or more came where 4 were asked for"),
    9: ("not-json", Outcome.FAILED, "an event is no completion"),
    10: ("whole", Outcome.FAILED, "answered application/json, not a stream"),
    11: ("abort", Outcome.REFUSED, "aborted before its first token"),
}


def test_what_goes_wrong_is_counted_offered_and_not_attained():
    by_length = {20 + number: kind for number, (kind, _, _) in WRONG.items()}
    with StubServer(behave=lambda call: by_length.get(len(call.body["prompt"]))) as server:
        run = replay(plain(13), server.url)
    for number, request in enumerate(run.requests):
        _, outcome, cause = WRONG.get(number, ("", Outcome.FINISHED, ""))
        assert request.outcome is outcome
        assert request.cause.startswith(cause)
    total = run.metrics().total
    refused = sum(outcome is Outcome.REFUSED for _, outcome, _ in WRONG.values())
    assert (total.offered, total.finished, total.attained, total.admitted) == (13, 2, 2, 13 - refused)
    metrics = run.metrics()
    assert (metrics.num_rejected, metrics.num_failed) == (refused, len(WRONG) - refused)
    assert metrics.num_unfinished == metrics.num_failed
    lengths = [20 + number for number, request in enumerate(run.requests) if request.tokens_s]
    assert (len(lengths), metrics.num_prompt_tokens) == (6, sum(lengths))
    assert not metrics.drained


def test_a_server_that_dies():
    with StubServer(step_s=0.05) as server:
        url = server.url

        async def dying() -> ReplayRun:
            running = asyncio.create_task(replay_async(plain(30, gap_s=0.05, tokens=3), url))
            while len(server.calls) < 3:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.shut)
            return await running

        run = asyncio.run(dying())
    assert run.requests[-1].outcome is Outcome.FAILED
    assert "connection failed" in run.requests[-1].cause


def garbled(rng: random.Random, head: bytes) -> bytes:
    """A stream of completions with bytes changed, lost, added and cut off."""
    chunk = b'data: {"choices": [{"text": "x", "token_ids": [5]}]}\n\n'
    body = bytearray(chunk * 3 + b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n')
    whole = bytearray(head) + body if rng.random() < 0.7 else body
    for _ in range(rng.randint(0, 6)):
        place = rng.randrange(len(whole))
        whole[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    return bytes(whole[: rng.randint(0, len(whole))] if rng.random() < 0.3 else whole)


def test_garbage_of_any_kind_ends_in_time_and_counts():
    """Raw bytes instead of HTTP, a damaged head or stream, connections left open: nothing hangs or escapes."""
    rng = random.Random(5)
    models = b'{"data": [{"id": "m"}]}'
    listed = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(models)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line.startswith(b"GET"):
            writer.write(listed + models)
        else:
            writer.write(garbled(rng, head))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if rng.random() < 0.8:
                writer.close()

    async def main() -> ReplayRun:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return await replay_async(plain(300, tokens=3), url, ReplayOptions(timeout_s=1.5))

    run = asyncio.run(main())
    found = outcomes(run)
    assert found.keys() <= {Outcome.FINISHED, Outcome.FAILED, Outcome.REFUSED}
    assert found[Outcome.FINISHED] > 20
    assert found[Outcome.FAILED] > 50
    assert run.metrics().total.finished == found[Outcome.FINISHED]


def test_later_rounds_wait_for_the_last_token_and_repeat_what_was_said():
    stages = (Stage(30, 4, "slack"), Stage(10, 3, "slack", cached_tokens=32, pause_s=0.05), Stage(5, 2, "slack"))
    with StubServer(step_s=0.005) as server:
        run = replay(of_stages(*stages), server.url)
    (served,) = run.requests
    first, second, third = (call.body["prompt"] for call in server.calls)
    assert [len(first), len(second), len(third)] == [30, 42, 5]
    assert second[:30] == first
    assert second[30:32] == [FIRST_TOKEN, FIRST_TOKEN + 1]  # of four that were said
    assert third != second[:5]
    assert served.rounds[1].due_s == served.rounds[0].tokens_s[-1] + 0.05
    assert served.rounds[1].sent_s >= served.rounds[1].due_s
    assert [len(each.tokens_s) for each in served.rounds] == [4, 3, 2]
    assert run.scores.finished.all()
    (times,) = run.scores.stages
    assert [stage.release_s for stage in times] == [each.due_s for each in served.rounds]


def test_a_round_that_fails_is_the_last():
    stages = (Stage(30, 4, "slack"), Stage(10, 3, "slack"), Stage(5, 2, "slack"))
    with StubServer(behave=lambda call: "429" if call.number == 1 else None) as server:
        run = replay(of_stages(*stages), server.url)
    assert len(server.calls) == 2
    assert outcomes(run) == {Outcome.REFUSED: 1}
    assert run.metrics().num_output_tokens == 4


def test_thinking_and_response_are_one_call():
    with StubServer() as server:
        run = replay(of_stages(Stage(30, 4, "strict"), Stage(0, 5, "slack")), server.url)
    (call,) = server.calls
    assert call.body["max_tokens"] == 9
    assert call.body["vllm_xargs"]["slo_thinking_tokens"] == 4
    assert len(run.scores.stages[0]) == 2


def test_equal_blocks_are_equal_tokens():
    requests = tuple(
        Request(f"r{k}", 0.0, (Stage(40, 1, "slack"),), Prefix(16, (7, block))) for k, block in enumerate((1, 1, 2))
    )
    with StubServer() as server:
        replay(Instance("shared", requests, CLASSES, ENGINE), server.url)
    prompts = sorted(call.body["prompt"] for call in server.calls)
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 3


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize(("count_by", "tells"), [("token-ids", "token-ids"), ("usage", "usage")])
def test_tokens_of_a_burst_have_one_time(burst: int, count_by: str, tells: str):
    with StubServer(burst=burst, tells=tells, step_s=0.002) as server:
        run = replay(plain(3, tokens=10), server.url, ReplayOptions(count_by=CountBy(count_by)))
    for request in run.requests:
        (served,) = request.rounds
        assert len(served.tokens_s) == 10
        assert len(set(served.tokens_s)) <= math.ceil(10 / burst)
        assert not served.estimated
    assert run.metrics().total.itl_ms.count == 27


def test_a_server_that_does_not_tell_its_tokens_is_reported():
    with StubServer(burst=2, tells="nothing") as server:
        run = replay(plain(3, tokens=10), server.url)
    assert run.metrics().num_estimated == 3
    assert outcomes(run) == {Outcome.FINISHED: 3}
    assert run.metrics().num_output_tokens == 30


def sent_with(options: ReplayOptions, slo: str = "strict") -> tuple[dict, dict]:
    """Body and headers of a call."""
    with StubServer() as server:
        replay(plain(1, slo), server.url, options)
    (call,) = server.calls
    return call.body, {name.lower(): value for name, value in call.headers.items()}


def test_where_the_slo_is_written(monkeypatch: pytest.MonkeyPatch):
    limits = {"slo_ttft_ms": 1e-6, "slo_tpot_ms": 1e-6}
    body, headers = sent_with(ReplayOptions())
    assert body["vllm_xargs"] == {"slo_class": "strict", **limits}
    assert "x-slo-ttft-ms" not in headers
    assert "authorization" not in headers
    assert sent_with(ReplayOptions(slo_fields=SloFields.LIMITS))[0]["vllm_xargs"] == limits
    body, headers = sent_with(ReplayOptions(slo_fields=SloFields.HEADERS))
    assert "vllm_xargs" not in body
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tpot-ms"]) == ("1e-06", "1e-06")
    body, headers = sent_with(ReplayOptions(slo_fields=SloFields.NONE, priority_by_slo=True, count_by=CountBy.CHUNKS))
    assert not {"vllm_xargs", "return_token_ids"} & body.keys()
    assert body["priority"] == 0
    assert "x-slo-ttft-ms" not in headers
    assert sent_with(ReplayOptions(priority_by_slo=True), "spare")[0]["priority"] == 2
    monkeypatch.setenv("MY_KEY", "secret")
    assert sent_with(ReplayOptions(api_key_env="MY_KEY"))[1]["authorization"] == "Bearer secret"


def test_the_seed_decides_the_prompts():
    prompts = [sent_with(ReplayOptions(seed=seed))[0]["prompt"] for seed in (3, 3, 4)]
    assert prompts[0] == prompts[1] != prompts[2]


def test_warm_up_is_in_no_figure():
    with StubServer() as server:
        run = replay(plain(2), server.url, ReplayOptions(warmup=3))
    assert len(server.calls) == 5
    assert run.metrics().num_calls == 2
    assert [len(call.body["prompt"]) for call in server.calls[:3]] == [20, 21, 20]
    prompts = [tuple(call.body["prompt"][:16]) for call in server.calls]
    assert len(set(prompts)) == 5
    with (
        StubServer(behave=lambda call: "400") as server,
        pytest.raises(UnusableServerError, match="warm-up request failed: HTTP 400"),
    ):
        replay(plain(2), server.url, ReplayOptions(warmup=1))


def test_best_effort_is_in_no_sum():
    with StubServer() as server:
        run = replay(plain(3, "spare"), server.url)
    metrics = run.metrics()
    assert (metrics.total.offered, metrics.classes[0].finished) == (0, 3)
    assert metrics.output_tokens_per_s > 0


def test_a_run_that_is_stopped_keeps_what_came():
    async def stopped(url: str) -> ReplayRun:
        stop = asyncio.Event()

        def report(phrase: str, done: float | None) -> None:
            if "1 finished" in phrase and len(server.calls) > 2:
                stop.set()

        return await replay_async(plain(1000, gap_s=0.05), url, stop=stop, report=report)

    with StubServer(behave=lambda call: "silent" if call.number else None) as server:
        run = asyncio.run(stopped(server.url))
    metrics = run.metrics()
    assert metrics.cut
    assert 3 <= len(run.requests) < 1000
    assert len(run.instance.requests) == len(run.requests)
    assert outcomes(run) == {Outcome.FINISHED: 1, Outcome.CUT: len(run.requests) - 1}
    assert (metrics.total.attained, metrics.total.offered) == (1, len(run.requests))


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_run_that_is_stopped_before_its_first_request(warmup: int):
    async def stopped(url: str) -> ReplayRun:
        stop = asyncio.Event()
        stop.set()
        return await replay_async(plain(3), url, ReplayOptions(warmup=warmup), stop=stop)

    with StubServer() as server, pytest.raises(NothingSentError):
        asyncio.run(stopped(server.url))


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (("a", "b"), ReplayOptions(model="c"), "has no model 'c'"),
        (("llama",), ReplayOptions(model="lama"), "did you mean 'llama'"),
        ((), ReplayOptions(), "offers no model"),
        (404, ReplayOptions(), "HTTP 404 and no list of models"),
        (500, ReplayOptions(model="m"), "HTTP 500 and no list of models"),
        (401, ReplayOptions(), "wants another API key"),
        ("<html>hello</html>", ReplayOptions(), "no list of models"),
        ("[1, 2]", ReplayOptions(), "no list of models"),
    ],
)
def test_servers_that_cannot_be_used(models, options: ReplayOptions, words: str):
    with StubServer(models=models) as server, pytest.raises(UnusableServerError, match=f"(?i){words}"):
        replay(plain(1), server.url, options)


def test_a_server_without_a_list_of_models_takes_the_name_that_is_given():
    with StubServer(models=404) as server:
        run = replay(plain(1), server.url + "/v1/", ReplayOptions(model="m"))
    assert run.server.model == "m"
    assert outcomes(run) == {Outcome.FINISHED: 1}


def test_nobody_listens():
    with StubServer() as server:
        url = server.url
    with pytest.raises(UnusableServerError, match="cannot be reached"):
        replay(plain(1), url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x?y=1", "http://[1"])
def test_addresses_that_are_none(url: str):
    with pytest.raises(InvalidInputError, match="expected the address of a server"):
        replay(plain(1), url)


def test_an_api_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(InvalidInputError, match="NO_KEY"):
        replay(plain(1), "http://localhost:1", ReplayOptions(api_key_env="NO_KEY"))
