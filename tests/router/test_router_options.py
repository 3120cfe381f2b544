"""Replicas and limits, as an operator gives them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.router.options import RouterOptions, replica_url, replica_urls

URLS = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP"]),
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "Host.Example", "a-b.c"]),
    st.sampled_from(["", ":80", ":443", ":8000"]),
    st.sampled_from(["", "/", "/v1", "/v1/", "/engine", "/engine/v1", "/a/b/"]),
)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8001"),
        ("HTTP://GPU-1:80/", "http://gpu-1"),
        ("https://gpu-1:443/engine/v1/", "https://gpu-1/engine"),
        ("http://[::1]:8001", "http://[::1]:8001"),
    ],
)
def test_plain_form(text: str, url: str):
    assert replica_url(text) == url


@given(URLS)
def test_the_plain_form_is_its_own(text: str):
    url = replica_url(text)
    assert replica_url(url) == url
    assert not url.endswith("/")


@given(st.text(max_size=40))
def test_anything_else_is_refused_in_words(text: str):
    problem = ""
    try:
        assert replica_url(text).startswith(("http://", "https://"))
    except InvalidInputError as error:
        problem = str(error)
    assert not problem or problem.startswith("--replica ")
    assert "\n" not in problem


@given(
    st.sampled_from(["", "http://", "ftp://h", "http://h:99999", "http://h:0", "http://h:x", "//h", "http://h/../x"])
)
def test_no_address(text: str):
    with pytest.raises(InvalidInputError, match="--replica"):
        replica_url(text)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(InvalidInputError, match="user name") as caught:
        replica_url("http://me:secret@host:8000")
    assert "secret" not in str(caught.value)


def test_a_query_is_refused():
    for text in ("http://h/?a=1", "http://h/#x", "http://h?"):
        with pytest.raises(InvalidInputError, match="query or a fragment"):
            replica_url(text)


@given(st.lists(URLS, min_size=1, max_size=5))
def test_each_replica_once(texts: list[str]):
    plain = [replica_url(text) for text in texts]
    if len(set(plain)) == len(plain):
        assert replica_urls(texts) == tuple(plain)
    else:
        with pytest.raises(InvalidInputError, match="given twice"):
            replica_urls(texts)


def test_none_at_all():
    with pytest.raises(InvalidInputError, match="no replica is given"):
        replica_urls([])


@pytest.mark.parametrize("name", RouterOptions.__slots__)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_limits_out_of_range(name: str, value: float):
    with pytest.raises(InvalidInputError, match=name):
        RouterOptions(**{name: value})


def test_defaults_are_in_range_and_nothing_need_be_held_or_drained():
    assert RouterOptions(max_hold_s=0, drain_s=0).max_hold_s == 0
    for name in ("max_body_bytes", "read_timeout_s", "probe_failures"):
        with pytest.raises(InvalidInputError, match=name):
            RouterOptions(**{name: 0})
