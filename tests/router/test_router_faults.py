"""Replicas that refuse, fail, hang, slow down and come back: nothing without a token is lost, nothing hangs."""

import asyncio
import json

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'slo-opt[live]'")

from router_harness import Answer, Routed, routed, run, until
from stub_replica import StubCall, StubReplica, tokens_of

TOKENS = ["t0", "t1", "t2", "t3"]


def always(wrong: str):
    return lambda call: wrong


async def ask_whole(at: Routed) -> Answer:
    """A request that is not streamed."""
    return await at.ask(body={"prompt": [1], "stream": False})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("429", "refused"),
        ("503", "refused"),
        ("500", "server_error"),
        ("die", "disconnected"),
        ("die-after-head", "disconnected"),
        ("garbage", "malformed"),
        ("redirect", "redirect"),
    ],
)
def test_before_the_first_byte_another_replica_is_asked(wrong: str, reason: str):
    async def work() -> None:
        async with StubReplica(behave=always(wrong)) as bad, StubReplica() as good, routed([bad, good]) as at:
            answer = await at.ask()
            assert (answer.status, answer.broken) == (200, False)
            assert tokens_of(answer.body) == TOKENS
            assert len(good.calls) == 1
            assert good.calls[0].body == bad.calls[0].body
            # Once more on a fresh connection where an idle one may have ended.
            assert len(bad.calls) == (2 if wrong == "die" else 1)
            assert await at.metric("slo_opt_router_hops_total", reason=reason) in (0.0, 1.0)

    run(work())


@pytest.mark.parametrize("wrong", ["429", "503"])
def test_a_refusal_of_all_is_passed_on(wrong: str):
    async def work() -> None:
        async with (
            StubReplica(behave=always(wrong)) as one,
            StubReplica(behave=always(wrong)) as two,
            routed([one, two]) as at,
        ):
            answer = await at.ask()
            assert (answer.status, answer.header("retry-after")) == (int(wrong), "7")
            assert answer.error == {"message": "not now"}
            assert (answer.header("x-hop"), answer.header("x-kept")) == (None, "2")
            assert [len(one.calls), len(two.calls)] == [1, 1]
            assert len(at.router.fleet.up) == 2  # who refuses is well

    run(work())


@pytest.mark.parametrize(
    ("wrong", "status"), [("500", 500), ("die", 502), ("garbage", 502), ("redirect", 502), ("die-after-head", 502)]
)
def test_a_failure_of_all_is_told(wrong: str, status: int):
    async def work() -> None:
        async with (
            StubReplica(behave=always(wrong)) as one,
            StubReplica(behave=always(wrong)) as two,
            routed([one, two]) as at,
        ):
            answer = await at.ask()
            assert answer.status == status
            assert answer.error["message"]
            assert answer.header("location") is None
            if status == 502:
                assert int(answer.header("retry-after") or 0) >= 1

    run(work())


def test_one_request_does_not_fell_the_whole_fleet():
    async def work() -> None:
        stubs = [StubReplica(behave=always("garbage")) for _ in range(4)]
        for stub in stubs:
            await stub.start()
        async with routed(stubs, max_failures=2) as at:
            assert (await at.ask()).status == 502
            assert [len(stub.calls) for stub in stubs] == [1, 1, 0, 0]
            await until(lambda: len(at.router.fleet.up) == 4)
        for stub in stubs:
            await stub.kill()

    run(work())


def test_after_the_first_byte_a_stream_ends_with_an_error():
    async def work() -> None:
        async with StubReplica(behave=always("die-amid")) as bad, StubReplica() as good, routed([bad, good]) as at:
            answer = await at.ask()
            assert answer.status == 200
            assert not good.calls
            assert tokens_of(answer.body) == TOKENS[:2]
            assert not answer.broken
            last = answer.body.rstrip().rpartition(b"data: ")[2]
            assert json.loads(last)["error"]["code"] == 502
            assert b"[DONE]" not in answer.body

    run(work())


def test_a_stream_cut_within_an_event_is_cut_for_the_client_too():
    async def work() -> None:
        async with StubReplica(behave=always("die-torn")) as bad, StubReplica() as good, routed([bad, good]) as at:
            answer = await at.ask()
            assert answer.broken
            assert not good.calls

    run(work())


def test_a_stream_without_framing_that_ends_early_is_no_whole_answer():
    async def work() -> None:
        async with StubReplica(behave=always("unframed")) as stub, routed([stub]) as at:
            answer = await at.ask()
            assert tokens_of(answer.body) == TOKENS[:2]
            assert b'"error"' in answer.body

    run(work())


def test_an_answer_of_another_schema_passes_as_it_is():
    async def work() -> None:
        async with StubReplica(behave=always("other-schema")) as stub, routed([stub]) as at:
            answer = await at.ask()
            assert (answer.status, json.loads(answer.body)) == (200, {"answer": 42})

    run(work())


def test_a_silent_replica_is_given_up_in_time():
    async def work() -> None:
        async with (
            StubReplica(behave=always("hang")) as bad,
            StubReplica() as good,
            routed([bad, good], idle_timeout_s=2.0) as at,
        ):
            answer = await at.ask()
            assert tokens_of(answer.body) == TOKENS
            await until(lambda: bad.calls[0].ended == "left")
        async with StubReplica(behave=always("hang")) as bad, routed([bad], idle_timeout_s=2.0) as at:
            assert (await at.ask()).status == 504
        async with StubReplica(behave=always("hang-amid")) as bad, routed([bad], idle_timeout_s=2.0) as at:
            answer = await at.ask()
            assert tokens_of(answer.body) == TOKENS[:2]
            assert json.loads(answer.body.rstrip().rpartition(b"data: ")[2])["error"]["code"] == 504

    run(work())


def test_an_answer_may_not_take_for_ever():
    async def work() -> None:
        async with StubReplica(step_s=0.02) as stub, routed([stub], total_timeout_s=0.3) as at:
            answer = await at.ask(body={"prompt": [1], "max_tokens": 10_000, "stream": True})
            assert b"took longer" in answer.body
            await until(lambda: stub.calls[0].ended == "left")

    run(work())


def test_nobody_is_there():
    async def work() -> None:
        stub = StubReplica()
        await stub.start()
        await stub.kill()
        async with routed([stub]) as at:
            answer = await at.ask()
            assert answer.status == 503
            assert int(answer.header("retry-after") or 0) >= 1
            await stub.start()  # unreachable at the start, and taken in once it answers
            await until(lambda: bool(at.router.fleet.up))
            assert (await at.ask()).status == 200
        await stub.kill()

    run(work())


def test_the_only_replica_loses_a_connection():
    """Who comes while it is looked at again waits for that."""

    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            stub.behave = lambda call: "die" if call.number < 2 else None
            first = asyncio.create_task(at.ask())
            await until(lambda: not at.router.fleet.up)
            assert (await at.ask()).status == 200
            assert (await first).status == 502

    run(work())


def test_a_replica_that_says_it_is_unwell_gets_nothing():
    async def work() -> None:
        async with StubReplica() as sick, StubReplica() as well, routed([sick, well]) as at:
            sick.health = 503
            await until(lambda: len(at.router.fleet.up) == 1)
            assert (await at.ask()).status == 200
            assert [len(sick.calls), len(well.calls)] == [0, 1]
            sick.health = 200
            await until(lambda: len(at.router.fleet.up) == 2)

    run(work())


async def load(at: Routed, count: int, answers: list[Answer]) -> None:
    """Requests that begin a few milliseconds after one another, every second one not streamed."""

    async def one(number: int) -> None:
        await asyncio.sleep(0.004 * number)
        answers.append(await (at.ask() if number % 2 else ask_whole(at)))

    await asyncio.gather(*(one(number) for number in range(count)))


def fate(answer: Answer) -> str:
    """How a request went for its client."""
    if answer.status != 200:
        return f"status {answer.status}"
    if answer.broken or b'"error"' in answer.body:
        return "broken"
    document = json.loads(answer.body) if answer.body.startswith(b"{") else None
    assert document is not None or tokens_of(answer.body) == TOKENS
    return "whole"


def test_a_replica_killed_under_load_and_started_again():
    async def work() -> None:
        answers: list[Answer] = []
        async with (
            StubReplica(step_s=0.01) as one,
            StubReplica(step_s=0.01) as two,
            routed([one, two], "round-robin") as at,
        ):
            loading = asyncio.create_task(load(at, 120, answers))
            await until(lambda: len(answers) > 20)
            await one.kill()
            await until(lambda: len(at.router.fleet.up) == 1)
            await until(lambda: len(answers) > 60)
            await one.start()
            await until(lambda: len(at.router.fleet.up) == 2)
            await loading
            fates = [fate(answer) for answer in answers]
            assert len(fates) == 120
            assert fates.count("whole") + fates.count("broken") == 120
            # Only those whose first token had reached their client may end with an error.
            broken = [answer for answer in answers if fate(answer) == "broken"]
            assert all(tokens_of(answer.body)[:1] == ["t0"] for answer in broken)
            before = len(one.calls)
            await asyncio.gather(*(at.ask() for _ in range(4)))
            assert len(one.calls) > before

    run(work())


def test_no_request_that_had_not_produced_a_token_is_lost():
    async def work() -> None:
        async with StubReplica() as one, StubReplica() as two, routed([one, two], "round-robin") as at:
            waiting = asyncio.Event()

            def hold(call: StubCall) -> str | None:
                waiting.set()
                return "hang"

            one.behave = hold
            asking = [asyncio.create_task(at.ask()) for _ in range(8)]
            await until(lambda: len(one.calls) == 4)
            await one.kill()
            answers = await asyncio.gather(*asking)
            assert [fate(answer) for answer in answers] == ["whole"] * 8
            assert len(two.calls) == 8

    run(work())


def test_a_replica_that_slows_down_loses_nothing():
    async def work() -> None:
        answers: list[Answer] = []
        slow = [False]
        async with (
            StubReplica(behave=lambda call: "slow" if slow[0] else None, step_s=0.005) as one,
            StubReplica(step_s=0.005) as two,
            routed([one, two], "join-shortest-queue") as at,
        ):
            loading = asyncio.create_task(load(at, 100, answers))
            await until(lambda: len(answers) > 20)
            slow[0] = True
            await loading
            assert [fate(answer) for answer in answers] == ["whole"] * 100

    run(work())


def test_a_replica_that_is_cut_off_is_left():
    """It takes connections and gives no answer, as behind a broken network."""

    async def work() -> None:
        async with (
            StubReplica() as one,
            StubReplica() as two,
            routed([one, two], probe_timeout_s=2.0, probe_failures=2) as at,
        ):
            one.gate = asyncio.Event()
            streaming = asyncio.create_task(at.ask())
            await until(lambda: any(replica.attempts for replica in at.router.fleet.replicas) and one.open == 1)
            await until(lambda: len(at.router.fleet.replicas[0].books.view.running) == 1)
            one.behave = always("hang")
            waiting = [asyncio.create_task(at.ask()) for _ in range(3)]
            await until(lambda: len(one.calls) == 4)
            one.health = 0
            answers = await asyncio.gather(*waiting)
            assert [fate(answer) for answer in answers] == ["whole"] * 3
            assert fate(await streaming) == "broken"
            assert len(at.router.fleet.up) == 1

    run(work())


def test_held_requests_go_on_when_a_replica_joins():
    async def work() -> None:
        async with StubReplica() as one, StubReplica() as two:
            await two.kill()
            async with routed([one, two], "router_harness:OnlyBoth", max_hold_s=1000) as at:
                asking = asyncio.create_task(at.ask())
                await until(lambda: at.router.fleet.num_held == 1)
                await two.start()
                assert fate(await asking) == "whole"
                assert len(two.calls) == 1

    run(work())


def test_draining_finishes_what_is_under_way_and_takes_nothing_more():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub]) as at:
            stub.gate = asyncio.Event()
            asking = asyncio.create_task(at.ask())
            await until(lambda: stub.open == 1)
            draining = asyncio.create_task(at.router.drain(60.0))
            await until(lambda: at.router.draining)
            refused = await at.ask()
            assert (refused.status, refused.header("retry-after")) == (503, "1")
            assert (await at.get("/ready")).status == 503
            assert (await at.get("/health")).status == 200
            assert not draining.done()
            stub.gate.set()
            assert fate(await asking) == "whole"
            assert await draining == 0

    run(work())


def test_draining_has_an_end():
    async def work() -> None:
        async with StubReplica() as stub:
            stub.gate = asyncio.Event()
            async with routed([stub]) as at:
                asking = asyncio.create_task(at.ask())
                await until(lambda: stub.open == 1)
                assert await at.router.drain(0.05) == 1
                stub.gate.set()
                await asking

    run(work())


def test_a_restarted_router_finds_its_replicas_again():
    async def work() -> None:
        async with StubReplica() as one, StubReplica() as two:
            for _ in range(2):
                async with routed([one, two], "round-robin") as at:
                    assert [(await at.ask()).status for _ in range(4)] == [200] * 4
            assert [len(one.calls), len(two.calls)] == [4, 4]

    run(work())


def test_a_client_that_reads_nothing_does_not_hold_its_replica():
    async def work() -> None:
        async with StubReplica() as stub, routed([stub], idle_timeout_s=0.3) as at:
            stub.chunks["endless"] = [b"data: " + b"x" * (1 << 20) + b"\n\n"] * 400
            host, _, port = at.url.removeprefix("http://").partition(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-script: endless\r\nContent-Length: 2\r\n\r\n{}"
            writer.write(head)
            await until(lambda: bool(stub.calls) and stub.calls[0].ended == "left")
            await until(lambda: not at.router.in_flight)
            writer.close()

    run(work())
