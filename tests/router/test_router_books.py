"""What a router believes of a replica."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.router.books import ReplicaBooks
from slo_opt.engine_bridge.router.reports import EngineReport
from slo_opt.engine_bridge.slo_fields import RequestSlo
from slo_opt.policies.interface import Standing

ENGINE = replace(engine_named("llama-3-8b-h100"), kv_blocks=1000, block_size_tokens=16)
SLO = RequestSlo("chat", 0.05, ttft_s=1.0)

COUNTS = st.none() | st.integers(0, 40)
REPORTS = st.builds(
    EngineReport,
    running=COUNTS,
    waiting=COUNTS,
    kv_share=st.none() | st.floats(0, 1),
    free_kv_blocks=st.none() | st.integers(0, 5000),
    kv_blocks=st.none() | st.integers(1, 4000),
    block_size_tokens=st.none() | st.sampled_from([8, 16, 32]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.integers(1, 3000)),
        st.tuples(st.just("passed"), st.integers(0, 30), st.integers(0, 5)),
        st.tuples(st.just("ended"), st.integers(0, 30)),
        st.tuples(st.just("reported"), REPORTS),
    ),
    max_size=60,
)


def job_of(number: int, prompt_tokens: int, now_s: float = 0.0) -> LiveJob:
    return LiveJob(f"r{number}", SLO, now_s, 1.0, prompt_tokens)


def check(books: ReplicaBooks, there: list[LiveJob]) -> None:
    """What holds at any moment."""
    view = books.view
    own = [job for job in (*view.running, *view.waiting) if isinstance(job, LiveJob)]
    strangers = [job for job in view.running if not isinstance(job, LiveJob)]
    assert sorted(job.id for job in own) == sorted(job.id for job in there)
    assert len(books) == len(there)
    assert 0 <= view.free_kv_blocks <= view.engine.kv_blocks
    assert not [job for job in view.waiting if job.kv_blocks or job.decoding]
    for job in view.running:
        assert job.computed_tokens <= job.known_tokens
        assert job.kv_blocks >= 0
        assert job.kv_blocks == 0 or job.kv_blocks * view.engine.block_size_tokens >= job.computed_tokens
    assert all(job.standing is Standing.BEST_EFFORT for job in strangers)
    assert view.running[: len(strangers)] == strangers  # they began before anything that is known


@given(STEPS)
def test_whatever_happens_nothing_is_negative_and_all_that_ended_is_gone(steps: list[tuple]):
    books = ReplicaBooks("a", ENGINE, "chat")
    there: list[LiveJob] = []
    reported = False
    version = books.view.version
    for number, (kind, *details) in enumerate(steps):
        now_s = float(number)
        if kind == "sent":
            there.append(job_of(number, details[0], now_s))
            books.sent(there[-1], now_s)
        elif kind == "passed" and there:
            books.passed(there[details[0] % len(there)], details[1], now_s)
        elif kind == "ended" and there:
            job = there.pop(details[0] % len(there))
            books.ended(job, now_s)
            books.ended(job, now_s)
            assert (job.kv_blocks, job.computed_tokens, job.decoding) == (0, 0, False)
        elif kind == "reported":
            books.reported(details[0], now_s - 0.5)
        check(books, there)
        reported |= kind == "reported"
        if not reported:
            assert books.view.free_kv_blocks == max(0, ENGINE.kv_blocks - sum(job.kv_blocks for job in there))
        assert books.view.version >= version
        version = books.view.version
        books.look()
    for job in there:
        books.ended(job, 100.0)
    check(books, [])
    assert reported or books.view.free_kv_blocks == ENGINE.kv_blocks
    books.reported(EngineReport(0, 0, 0.0), 200.0)
    view = books.look()
    assert view.idle
    assert view.free_kv_blocks == view.engine.kv_blocks
    assert view.batch_ends_s == -math.inf


def test_a_request_waits_until_its_first_token():
    books, job = ReplicaBooks("a", ENGINE, "chat"), job_of(1, 100)
    books.sent(job, 0.0)
    assert books.view.waiting == [job]
    books.passed(job, 1, 0.2)
    assert books.view.running == [job]
    assert (job.computed_tokens, job.known_tokens, job.emitted_tokens, job.kv_blocks) == (100, 101, 1, 7)
    assert books.view.free_kv_blocks == 1000 - 7
    books.passed(job, 13, 0.9)
    assert (job.computed_tokens, job.known_tokens, job.emitted_tokens, job.kv_blocks) == (113, 114, 14, 8)
    step_s = ENGINE.batch_time_s(1, decode_context_tokens=113, num_requests=1)
    assert books.look().batch_ends_s == 0.9 + step_s


def test_every_change_has_a_version_of_its_own():
    books, job = ReplicaBooks("a", ENGINE, "chat"), job_of(1, 100)
    versions = [books.view.version]
    for step in (
        lambda: books.sent(job, 0.0),
        lambda: books.passed(job, 1, 0.1),
        lambda: books.reported(EngineReport(2, 0, 0.5), 0.2),
        lambda: books.ended(job, 0.3),
    ):
        step()
        versions.append(books.view.version)
    assert versions == sorted(set(versions))


def test_the_oldest_have_begun_where_the_engine_runs_more_than_is_known():
    books = ReplicaBooks("a", ENGINE, "chat")
    first, second, late = job_of(1, 160), job_of(2, 160), job_of(3, 160)
    books.sent(first, 0.0)
    books.sent(second, 0.1)
    books.sent(late, 0.9)
    books.reported(EngineReport(1, 1, 0.01), asked_s=0.5)
    assert books.view.running == [first]
    assert books.view.waiting == [second, late]
    assert not first.decoding
    assert first.kv_blocks == 10


def test_requests_of_others_are_shown_and_go_again():
    books, job = ReplicaBooks("a", ENGINE, "chat"), job_of(1, 160)
    books.sent(job, 0.0)
    books.passed(job, 1, 0.1)
    books.reported(EngineReport(4, 1, 0.5), 1.0)
    assert books.view.num_requests == 5
    assert books.view.free_kv_blocks == 500
    books.ended(job, 2.0)
    assert books.view.num_requests == 4
    books.reported(EngineReport(0, 0, 0.0), 9.0)
    assert books.view.idle


def test_a_request_that_just_ended_is_no_stranger():
    books, job = ReplicaBooks("a", ENGINE, "chat"), job_of(1, 160)
    books.sent(job, 0.0)
    books.ended(job, 1.0)
    books.reported(EngineReport(1, 0, 0.01), 1.2)
    assert books.view.idle
    books.reported(EngineReport(1, 0, 0.01), 5.0)
    assert books.view.num_requests == 1


def test_blocks_follow_the_engine_between_reports():
    books = ReplicaBooks("a", ENGINE, "chat")
    first, second = job_of(1, 800), job_of(2, 800)
    books.sent(first, 0.0)
    books.passed(first, 1, 0.1)
    assert books.view.free_kv_blocks == 950
    books.reported(EngineReport(1, 0, free_kv_blocks=980), 0.2)  # most of its prompt is shared
    assert books.view.free_kv_blocks == 980
    books.sent(second, 0.3)
    books.passed(second, 1, 0.4)
    assert books.view.free_kv_blocks == 930


def test_the_server_tells_its_own_limits():
    books = ReplicaBooks("a", ENGINE, "chat")
    books.reported(EngineReport(kv_blocks=123, block_size_tokens=32), 0.0)
    books.limits(2048)
    engine = books.view.engine
    assert (engine.kv_blocks, engine.block_size_tokens, engine.max_model_len) == (123, 32, 2048)
    assert books.view.free_kv_blocks == 123
    assert engine.pieces == ENGINE.pieces
