"""How long a prompt is, told from a body."""

import json

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.shape import Shape, TextMeasure, shape_of

IDS = st.lists(st.integers(0, 200_000), min_size=1, max_size=50)
SPACES = st.sampled_from([None, 0, 2])


@given(IDS, SPACES)
def test_token_ids_are_counted_exactly(ids: list[int], indent: int | None):
    assert shape_of(json.dumps({"prompt": ids, "model": "m"}, indent=indent).encode()) == Shape("m", len(ids), 0)


@given(st.lists(IDS, min_size=1, max_size=5), SPACES)
def test_lists_of_token_ids_too(prompts: list[list[int]], indent: int | None):
    body = json.dumps({"prompt": prompts}, indent=indent).encode()
    assert shape_of(body).prompt_tokens == sum(map(len, prompts))


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.booleans())
def test_text_is_measured_in_utf8(texts: list[str], escaped: bool):
    length = sum(len(text.encode(errors="replace")) for text in texts)
    whole = json.dumps({"prompt": texts}, ensure_ascii=True).encode()
    assert shape_of(whole) == Shape(None, 0, length)
    messages = [{"role": "user", "content": text} for text in texts]
    if escaped:
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in texts]
    assert shape_of(json.dumps({"messages": messages}).encode()).text_bytes == length


def test_pictures_are_not_text():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]
    assert shape_of(json.dumps({"messages": messages}).encode()).text_bytes == len("What is it?")


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(
                    st.sampled_from(["prompt", "messages", "model", "tools", "content", "text", "input"]),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_nothing_makes_it_raise(body: bytes):
    shape = shape_of(body)
    assert shape.prompt_tokens >= 0
    assert shape.text_bytes >= 0
    assert TextMeasure().tokens(shape) >= 1


def test_deep_nesting_is_nothing():
    assert shape_of(b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}").prompt_tokens >= 0


@given(st.floats(0.8, 8.0), st.lists(st.integers(200, 5_000), min_size=60, max_size=60))
def test_the_length_of_a_token_is_learned(bytes_per_token: float, lengths: list[int]):
    measure = TextMeasure()
    for length in lengths * 5:
        measure.observe(Shape(text_bytes=length), max(1, round(length / bytes_per_token)))
    estimate = measure.tokens(Shape(text_bytes=10_000))
    assert abs(estimate * bytes_per_token / 10_000 - 1) < 0.2


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(-5, 10**9)), max_size=20))
def test_answers_that_mean_nothing_teach_nothing_wild(answers: list[tuple[int, int]]):
    measure = TextMeasure()
    for length, tokens in answers:
        measure.observe(Shape(text_bytes=length), tokens)
    assert 1 <= measure.tokens(Shape(text_bytes=100)) <= 50_000
