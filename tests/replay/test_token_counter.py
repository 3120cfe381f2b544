"""Tokens of a stream are counted, and stamped with the event that they came with."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.replay.sse import StreamFormatError
from slo_opt.replay.token_counter import TokenCounter

BURSTS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def events(bursts: list[int], tells: str) -> list[bytes]:
    """A stream with so many tokens an event; the server tells their ids, its count so far, or only the sum."""
    found, so_far = [], 0
    for burst in bursts:
        choice: dict = {"index": 0, "text": "x" * burst}
        if tells == "token-ids":
            choice["token_ids"] = list(range(so_far, so_far + burst))
        so_far += burst
        chunk: dict = {"choices": [choice]}
        if tells == "usage":
            chunk["usage"] = {"completion_tokens": so_far}
        found.append(chunk)
    found[-1]["choices"][0]["finish_reason"] = "length"
    found.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": so_far}})
    return [*(json.dumps(chunk).encode() for chunk in found), b"[DONE]"]


def counted(stream: list[bytes], wanted: int) -> TokenCounter:
    counter = TokenCounter(wanted)
    for k, event in enumerate(stream):
        counter.take(event, float(k))
    return counter


@given(BURSTS, st.sampled_from(["token-ids", "usage"]))
def test_each_token_has_the_time_of_its_event(bursts: list[int], tells: str):
    counter = counted(events(bursts, tells), sum(bursts))
    assert counter.times_s == [float(k) for k, burst in enumerate(bursts) for _ in range(burst)]
    assert not counter.estimated
    assert counter.ended
    assert (counter.finish_reason, counter.prompt_tokens) == ("length", 9)
    assert counter.token_ids == (list(range(sum(bursts))) if tells == "token-ids" else [])


@given(BURSTS)
def test_without_a_count_events_are_tokens_and_the_missing_ones_are_late(bursts: list[int]):
    counter = counted(events(bursts, "nothing"), sum(bursts))
    seen = [float(k) for k, burst in enumerate(bursts) if burst]
    assert counter.times_s == seen + [float(len(bursts))] * (sum(bursts) - len(seen))
    assert counter.estimated == bool(seen)


@pytest.mark.parametrize("tells", ["token-ids", "usage", "nothing"])
def test_more_tokens_than_asked_for_are_refused(tells: str):
    with pytest.raises(StreamFormatError, match="5 tokens or more came where 4"):
        counted(events([1, 1, 1, 1, 1], tells), 4)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b"{", "no completion"),
        (b"[1]", "no completion"),
        (b"\xff\xfe", "no completion"),
        (b"[" * 100_000, "no completion"),
        (b'{"choices": 7}', "no completion"),
        (b'{"choices": [{"token_ids": ["a"]}]}', "no completion"),
        (b'{"error": {"message": "out of\\nmemory", "code": 500}}', "reports an error: out of memory"),
        (b'{"error": "plain"}', "reports an error: plain"),
    ],
)
def test_what_is_no_completion_is_refused(event: bytes, words: str):
    with pytest.raises(StreamFormatError, match=words):
        TokenCounter(3).take(event, 0.0)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(event: bytes):
    counter = TokenCounter(10)
    with contextlib.suppress(StreamFormatError):
        counter.take(event, 0.0)
    assert len(counter.times_s) <= 10


def test_what_follows_the_end_is_not_read():
    counter = counted([b" [DONE] ", b"garbage"], 1)
    assert (counter.ended, counter.times_s) == (True, [])
