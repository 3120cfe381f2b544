"""Which headers travel on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.headers import HOP_BY_HOP, OF_A_REQUEST, end_to_end

NAMES = st.sampled_from(
    ["Connection", "CONNECTION", "Keep-Alive", "te", "Upgrade", "Authorization", "X-Own", "x-other", "Content-Type"]
)
VALUES = st.one_of(
    st.sampled_from(["close", "x-own", "X-Other , te", ",,", "authorization,x-own", "keep-alive"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


@given(HEADERS)
def test_nothing_of_one_connection_passes_and_nothing_else_is_lost(headers: list[tuple[str, str]]):
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    kept = end_to_end(headers)
    assert kept == [pair for pair in headers if pair[0].lower() not in HOP_BY_HOP | named]
    assert end_to_end(kept) == kept


@pytest.mark.parametrize(
    "name",
    [
        *("connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        *("proxy-authenticate", "proxy-authorization", "host", "content-length", "expect"),
    ],
)
def test_headers_of_a_request_that_the_next_connection_makes_itself(name: str):
    assert end_to_end([(name.title(), "1"), ("X-Kept", "2")], OF_A_REQUEST) == [("X-Kept", "2")]


def test_repeated_headers_stay_repeated_and_in_order():
    headers = [("Set-Cookie", "a"), ("X", "1"), ("set-cookie", "b")]
    assert end_to_end(headers) == headers
