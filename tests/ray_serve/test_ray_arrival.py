"""From a request on the wire to the job that a policy sees."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.ray_serve.arrival import read_arrival
from slo_opt.engine_bridge.slo_fields import SloFieldError, request_slo

CONFIG = BridgeConfig(classes={"chat": LiveClass("chat", ttft_ms=500, tpot_ms=50, weight=2.0)})
PATHS = st.sampled_from(["/v1/completions", "/v1/chat/completions"])
LIMITS = st.integers(1, 10_000)
FIELDS = st.one_of(
    st.just({}),
    st.just({"slo_class": "chat"}),
    st.fixed_dictionaries({"slo_ttft_ms": LIMITS, "slo_tpot_ms": LIMITS}),
    st.fixed_dictionaries({"slo_class": st.just("chat"), "slo_tpot_ms": LIMITS}),
)


@given(PATHS, FIELDS, FIELDS, st.lists(st.integers(0, 2000), min_size=1, max_size=50))
def test_fields_of_body_and_headers_make_one_promise(path, fields, header_fields, prompt):
    body = {"model": "m", "prompt": prompt, "vllm_xargs": fields}
    headers = [(b"x-" + key.replace("_", "-").encode(), str(value).encode()) for key, value in header_fields.items()]
    arrival = read_arrival(path, [(b"host", b"h"), *headers], json.dumps(body).encode(), CONFIG)
    merged = {**{key: str(value) for key, value in header_fields.items()}, **fields}
    assert arrival.slo == request_slo(merged, CONFIG)
    assert arrival.shape.prompt_tokens == len(prompt)
    assert (arrival.arguments or fields) == merged


@given(st.binary(max_size=200))
def test_a_body_that_is_none_is_left_to_the_server(body):
    try:
        arrival = read_arrival("/v1/completions", [], body, CONFIG)
    except SloFieldError:
        return
    assert arrival.arguments is None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"vllm_xargs": {"slo_class": "caht"}}, []),
        ({"slo_class": "chat"}, []),
        ({}, [(b"x-slo-ttft-ms", b"soon")]),
        ({}, [(b"x-slo-tftt-ms", b"5")]),
    ],
)
def test_a_field_that_means_nothing_is_refused(body, headers):
    with pytest.raises(SloFieldError):
        read_arrival("/v1/completions", headers, json.dumps(body).encode(), CONFIG)


def test_what_generates_nothing_is_best_effort():
    arrival = read_arrival("/tokenize", [(b"x-slo-ttft-ms", b"5")], b'{"prompt": "hello"}', CONFIG)
    assert arrival.slo.best_effort
    assert arrival.shape.text_bytes == 5
