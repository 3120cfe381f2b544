"""The event parser on streams cut anywhere."""

import random
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slo_opt.replay.sse import MAX_EVENT_BYTES, EventParser, StreamFormatError

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=12)
NOISE = st.one_of(
    LINE.map(lambda text: ":" + text), st.sampled_from(["event: x", "id: 7", "retry: 10", "dat: no", "x"])
)


@st.composite
def streams(draw) -> tuple[list[bytes], bytes]:
    """Events, and a stream that holds them, written as a server is free to write it."""
    events, lines = [], []
    for _ in range(draw(st.integers(0, 6))):
        data = draw(st.lists(LINE, min_size=1, max_size=3))
        for text in data:
            lines += draw(st.lists(NOISE, max_size=2))
            blank = " " if text.startswith(" ") else draw(st.sampled_from(["", " "]))
            lines.append(f"data:{blank}{text}")
        lines += [""] * draw(st.integers(1, 3))
        events.append("\n".join(data).encode())
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = "".join(line + end for line in lines)
    return events, draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()


def cut(stream: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    places = sorted(rng.sample(range(len(stream) + 1), min(rng.randint(0, 12), len(stream) + 1)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


def parsed(pieces: list[bytes]) -> list[bytes]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@given(streams(), st.integers(0, 10**6))
def test_however_a_stream_is_cut_its_events_come_out(case, seed: int):
    events, stream = case
    assert parsed([stream]) == events
    assert parsed(cut(stream, seed)) == events
    assert parsed([stream[k : k + 1] for k in range(len(stream))]) == events


@given(st.lists(st.binary(max_size=20), max_size=20))
@example([b"\r", b"\n", b"\r\n", b""])
def test_any_bytes_at_all_are_read_alike_in_one_piece_and_in_many(pieces: list[bytes]):
    assert parsed(pieces) == parsed([b"".join(pieces)])


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\r\n\r\n: ping\r\n\r\ndata:  b\r\n\r\n", [b"a", b" b"]),
        (b"data: a\rdata: b\r\r", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data: cut off\n", []),
        (b"data: cut off", []),
        ("data: é€\n\n".encode(), ["é€".encode()]),
    ],
)
def test_by_hand(stream: bytes, events: list[bytes]):
    assert parsed([stream]) == events


def test_an_event_without_end_is_refused_before_it_fills_the_memory():
    parser, piece = EventParser(), b"data: " + b"x" * (1 << 20) + b"\n"
    tracemalloc.start()
    for _ in range(MAX_EVENT_BYTES // len(piece)):
        assert parser.feed(piece) == []
    with pytest.raises(StreamFormatError, match="larger than 64 MiB"):
        parser.feed(piece * 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_EVENT_BYTES
