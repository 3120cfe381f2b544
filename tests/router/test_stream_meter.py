"""Tokens that pass, however a stream is cut into pieces."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.stream_meter import StreamMeter, WholeMeter, ends_event


def data(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def chunk(**fields: object) -> bytes:
    return data({"choices": [{"index": 0, **fields}]})


EVENTS = {
    chunk(text="a"): 1,
    chunk(text=""): 0,
    chunk(text="ab", token_ids=[1, 2]): 2,
    chunk(text="", token_ids=[]): 0,
    chunk(delta={"role": "assistant", "content": ""}): 0,
    chunk(delta={"content": "é"}): 1,
    chunk(delta={"reasoning_content": "hm"}): 1,
    chunk(delta={"tool_calls": [{"index": 0}]}): 1,
    data({"type": "response.output_text.delta", "delta": "x"}): 1,
    b": ping\n\n": 0,
    b"data: {broken\n\n": 0,
    b"event: x\ndata: 1\n\n": 0,
}


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=15), st.lists(st.integers(0, 5000), max_size=20))
def test_the_count_is_the_same_however_it_is_cut(events: list[bytes], cuts: list[int]):
    meter = StreamMeter()
    passed = [meter.feed(piece) for piece in pieces_of(b"".join(events) + b"data: [DONE]\n\n", cuts)]
    assert sum(passed) == meter.tokens == sum(EVENTS[event] for event in events)
    assert meter.ended
    assert not meter.failed


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_nothing_makes_it_raise(pieces: list[bytes]):
    meter, whole = StreamMeter(), WholeMeter()
    for piece in pieces:
        assert meter.feed(piece) >= 0
        assert whole.feed(piece) == 0
    whole.finish()
    assert whole.tokens >= 0


def test_usage_adds_what_events_did_not_tell():
    meter = StreamMeter()
    assert meter.feed(chunk(text="a")) == 1
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}
    assert meter.feed(data(usage)) == 3
    assert (meter.tokens, meter.prompt_tokens) == (4, 7)


def test_the_first_choice_is_counted():
    meter = StreamMeter()
    meter.feed(data({"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}))
    meter.feed(data({"choices": [{"index": 1, "text": "b"}]}))
    meter.feed(data({"choices": [], "usage": {"completion_tokens": 3}}))
    assert meter.tokens == 1


def test_an_error_event_is_seen():
    meter = StreamMeter()
    meter.feed(data({"error": {"message": "engine dead"}}))
    assert meter.failed


@given(st.integers(0, 500), st.integers(0, 500), st.lists(st.integers(0, 5000), max_size=5))
def test_usage_of_a_whole_answer(prompt: int, output: int, cuts: list[int]):
    for names in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        meter = WholeMeter()
        text = json.dumps({"choices": [], "usage": dict(zip(names, (prompt, output), strict=True))}).encode()
        for piece in pieces_of(text, cuts):
            meter.feed(piece)
        meter.finish()
        assert (meter.prompt_tokens, meter.tokens) == (prompt, output)


def test_a_very_long_answer_is_not_kept():
    meter = WholeMeter()
    for _ in range(6):
        meter.feed(b"x" * (1 << 20))
    assert not meter._pieces
    meter.finish()
    assert meter.tokens == 0


def test_where_an_event_can_follow():
    for tail in (b"x\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"):
        assert ends_event(tail)
    for tail in (b"", b"x", b"x\n", b"\r\n", b"\n\nd"):
        assert not ends_event(tail)
