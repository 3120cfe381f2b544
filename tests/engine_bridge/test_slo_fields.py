"""SLO fields of a request: by hand, and whatever a client may send."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.slo_fields import FIELDS, RequestSlo, SloFieldError, request_slo

PAGE = Path(__file__).parents[2] / "docs/slo-fields.md"
CHAT = LiveClass("chat", ttft_ms=500, tpot_ms=50, weight=2.0)
CODE = LiveClass("code", ttft_slowdown=3, tpot_ms=40)
REASON = LiveClass("reason", ttft_ms=900, tpot_ms=100, thinking_tpot_ms=25, thinking_tokens=400)
BATCH = LiveClass("batch", best_effort=True)
CLASSES = {live.name: live for live in (CHAT, CODE, REASON, BATCH)}
CONFIG = BridgeConfig(classes=CLASSES)
THINKS = BridgeConfig(classes=CLASSES, thinking_end_token_id=7)
BEST_EFFORT = RequestSlo("default", 1.0, ttft_s=60.0, best_effort=True)


@pytest.mark.parametrize("fields", [None, {}, {"top_k_experts": 3, "kv_transfer_params": {"a": [1]}}, {5: "slo_class"}])
def test_without_slo_fields_the_default_class_holds(fields):
    assert request_slo(fields, CONFIG) == BEST_EFFORT
    with_default = BridgeConfig(classes=CLASSES, default_class="chat")
    assert request_slo(fields, with_default) == RequestSlo("chat", 0.05, ttft_s=0.5, weight=2.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"slo_class": "chat"}, RequestSlo("chat", 0.05, ttft_s=0.5, weight=2.0)),
        ({"slo_class": "code"}, RequestSlo("code", 0.04, ttft_slowdown=3)),
        ({"slo_class": "reason"}, RequestSlo("reason", 0.1, 0.025, 400, 0.9)),
        ({"slo_class": "batch"}, RequestSlo("batch", 1.0, ttft_s=60.0, best_effort=True)),
        ({"slo_class": "chat", "slo_ttft_ms": 300}, RequestSlo("chat", 0.05, ttft_s=0.3, weight=2.0)),
        ({"slo_class": "code", "slo_ttft_ms": 300}, RequestSlo("code", 0.04, ttft_s=0.3)),
        ({"slo_class": "code", "slo_tpot_ms": "20"}, RequestSlo("code", 0.02, ttft_slowdown=3)),
        ({"slo_ttft_ms": 1e3, "slo_tpot_ms": " 20.5 "}, RequestSlo("default", 0.0205, ttft_s=1.0)),
        ({"slo_class": "batch", "slo_ttft_ms": 9, "slo_tpot_ms": 8}, RequestSlo("batch", 0.008, ttft_s=0.009)),
        ({"slo_best_effort": True, "slo_ttft_ms": 9}, BEST_EFFORT),
        ({"slo_best_effort": "True"}, BEST_EFFORT),
        ({"slo_best_effort": 1.0, "slo_class": "default"}, BEST_EFFORT),
        ({"slo_best_effort": 0, "slo_class": "chat"}, RequestSlo("chat", 0.05, ttft_s=0.5, weight=2.0)),
        ({"slo_best_effort": True, "slo_class": "chat"}, RequestSlo("chat", 1.0, None, None, 60.0, None, 2.0, True)),
        ({"slo_class": "reason", "slo_thinking_tokens": 9.0}, RequestSlo("reason", 0.1, 0.025, 9, 0.9)),
        (
            {"slo_class": "chat", "slo_thinking_tpot_ms": 30, "slo_thinking_tokens": "64"},
            RequestSlo("chat", 0.05, 0.03, 64, 0.5, weight=2.0),
        ),
    ],
)
def test_a_class_gives_limits_and_fields_override_them(fields, expected):
    assert request_slo(fields, CONFIG) == expected


def test_a_known_end_of_thinking_spares_its_length():
    fields = {"slo_class": "chat", "slo_thinking_tpot_ms": 30}
    assert request_slo(fields, THINKS) == RequestSlo("chat", 0.05, 0.03, None, 0.5, weight=2.0)
    with pytest.raises(SloFieldError) as caught:
        request_slo(fields, CONFIG)
    assert caught.value.field == "slo_thinking_tokens"


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"slo_ttft_ms": 500}, "slo_tpot_ms", "is missing"),
        ({"slo_tpot_ms": 50}, "slo_ttft_ms", "is missing"),
        ({"slo_best_effort": False}, "slo_ttft_ms", "is missing"),
        ({"slo_class": "batch", "slo_ttft_ms": 500}, "slo_tpot_ms", "class 'batch' has no such limit"),
        ({"slo_class": "chat", "slo_thinking_tokens": 5}, "slo_thinking_tpot_ms", "is missing"),
        ({"slo_class": "chta"}, "slo_class", "Did you mean 'chat'? Known: chat, code, reason, batch, default"),
        ({"slo_class": ""}, "slo_class", "no class here"),
        ({"slo_class": 5}, "slo_class", "is 5"),
        ({"slo_class": None}, "slo_class", "is None"),
        ({"slo_class": ["chat"]}, "slo_class", "is a list"),
        ({"slo_class": {"chat": 1}}, "slo_class", "is a dict"),
        ({"slo_class": "x" * 5000}, "slo_class", "..."),
        ({"slo_ttft": 500, "slo_tpot_ms": 50}, "slo_ttft", "Did you mean 'slo_ttft_ms'?"),
        ({"slo_": 1}, "slo_", "is no SLO field"),
        ({"slo_" + "\n" * 200: 1}, "slo_" + r"\n" * 28 + "\\...", "is no SLO field"),
        ({"slo_ttft_ms": True, "slo_tpot_ms": 50}, "slo_ttft_ms", "is True; expected milliseconds"),
        ({"slo_class": "chat", "slo_ttft_ms": None}, "slo_ttft_ms", "is None"),
        ({"slo_class": "chat", "slo_ttft_ms": "0x10"}, "slo_ttft_ms", "is '0x10'"),
        ({"slo_class": "chat", "slo_ttft_ms": "1_000"}, "slo_ttft_ms", "is '1_000'"),
        ({"slo_class": "chat", "slo_ttft_ms": "500ms"}, "slo_ttft_ms", "is '500ms'"),
        ({"slo_class": "chat", "slo_ttft_ms": "\N{ARABIC-INDIC DIGIT FIVE}"}, "slo_ttft_ms", "milliseconds"),
        ({"slo_class": "chat", "slo_tpot_ms": 10**5000}, "slo_tpot_ms", "an integer of"),
        ({"slo_class": "chat", "slo_tpot_ms": 86_400_000.1}, "slo_tpot_ms", "at most 86400000 (a day)"),
        ({"slo_best_effort": "maybe"}, "slo_best_effort", "expected true or false"),
        ({"slo_best_effort": 2}, "slo_best_effort", "expected true or false"),
        ({"slo_best_effort": math.nan}, "slo_best_effort", "expected true or false"),
        ({"slo_best_effort": True, "slo_ttft_ms": "soon"}, "slo_ttft_ms", "is 'soon'"),
        ({"slo_class": "reason", "slo_thinking_tokens": 1.5}, "slo_thinking_tokens", "whole number"),
        ({"slo_class": "reason", "slo_thinking_tokens": 0}, "slo_thinking_tokens", "whole number"),
        ({"slo_class": "reason", "slo_thinking_tokens": 10_000_001}, "slo_thinking_tokens", "whole number"),
    ],
)
def test_each_mistake_names_its_field(fields, field, told):
    with pytest.raises(SloFieldError) as caught:
        request_slo(fields, CONFIG)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", ["slo_ttft_ms", "slo_tpot_ms", "slo_thinking_tpot_ms", "slo_thinking_tokens"])
@pytest.mark.parametrize(
    "value", [0, -1, "0", "-5", math.nan, "nan", math.inf, "inf", 1e300, "", [], [5], {}, {"a": 1}]
)
def test_what_is_no_limit(field, value):
    with pytest.raises(SloFieldError) as caught:
        request_slo({"slo_class": "reason", field: value}, CONFIG)
    assert caught.value.field == field


def test_the_limit_of_the_first_token():
    engine = engine_named("llama-3-8b-h100")
    assert request_slo({"slo_class": "chat"}, CONFIG).ttft_limit_s(engine, 1000) == 0.5
    slowed = request_slo({"slo_class": "code"}, CONFIG)
    assert slowed.ttft_limit_s(engine, 1000, 400) == 3 * engine.zero_load_ttft_s(1000, 400)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
RIGHT = {
    "slo_class": st.sampled_from([*CLASSES, "default"]),
    "slo_ttft_ms": st.floats(0.001, 1e6) | st.integers(1, 1000),
    "slo_tpot_ms": st.floats(0.001, 1e6) | st.floats(1, 1e6).map(str),
    "slo_best_effort": st.booleans(),
    "slo_thinking_tpot_ms": st.floats(0.001, 1e6),
    "slo_thinking_tokens": st.integers(1, 10_000),
}
MIXED = st.fixed_dictionaries({}, optional={name: values | ANYTHING for name, values in RIGHT.items()})


@given(fields=MIXED, others=st.dictionaries(st.text(max_size=8), ANYTHING, max_size=2), thinks=st.booleans())
@example(fields={"slo_ttft_ms": "1" * 400}, others={}, thinks=False)
def test_any_fields_give_an_slo_or_a_named_error(fields, others, thinks):
    config = THINKS if thinks else CONFIG
    merged = {**others, **fields}
    slo = outcome(merged, config)
    if isinstance(slo, SloFieldError):
        assert slo.field in FIELDS or slo.field[:30] in {repr(key)[1:-1][:30] for key in merged} | set(merged)
        assert len(str(slo)) < 500
        return
    assert slo.slo == fields.get("slo_class", "default")
    assert 0 < slo.tpot_s <= 86_400
    assert (slo.ttft_s is None) != (slo.ttft_slowdown is None)
    assert slo.ttft_s is None or 0 < slo.ttft_s <= 86_400
    assert slo.thinking_tokens is None or slo.thinking_tpot_s is not None
    assert slo.thinking_tpot_s is None or slo.thinking_tokens is not None or thinks
    assert slo.best_effort is (fields.get("slo_best_effort") in (True, "true", "1") or not _asks(fields, config))


def outcome(fields: dict[str, object], config: BridgeConfig = CONFIG) -> RequestSlo | SloFieldError:
    try:
        return request_slo(fields, config)
    except SloFieldError as error:
        return error


def _asks(fields: dict[str, object], config: BridgeConfig) -> bool:
    """Whether a request names limits or a class that has some."""
    limits = {"slo_ttft_ms", "slo_tpot_ms"} <= fields.keys()
    return limits or not config.classes[str(fields.get("slo_class", "default"))].best_effort


@given(fields=st.fixed_dictionaries({}, optional=RIGHT), order=st.randoms())
def test_neither_order_nor_text_nor_other_fields_matter(fields, order):
    items = [*fields.items(), ("session_id", "a")]
    order.shuffle(items)
    expected = said(outcome(fields))
    assert said(outcome(dict(items))) == expected
    texts = {name: value if name == "slo_class" else str(value) for name, value in fields.items()}
    assert said(outcome(texts)) == expected


def said(found: RequestSlo | SloFieldError) -> RequestSlo | str:
    return found.field if isinstance(found, SloFieldError) else found


@given(fields=st.fixed_dictionaries({}, optional=RIGHT), own=st.sampled_from(["chat", "code", "reason"]))
def test_what_is_given_holds_whatever_the_class_says(fields, own):
    slo = request_slo(
        {**fields, "slo_class": own, "slo_best_effort": False, "slo_thinking_tpot_ms": 5}
        | ({} if "slo_thinking_tokens" in fields else {"slo_thinking_tokens": 3}),
        CONFIG,
    )
    live = CLASSES[own]
    if "slo_ttft_ms" in fields:
        assert slo.ttft_s == float(fields["slo_ttft_ms"]) / 1e3
        assert slo.ttft_slowdown is None
    else:
        assert (slo.ttft_s, slo.ttft_slowdown) == (live.ttft_ms and live.ttft_ms / 1e3, live.ttft_slowdown)
    assert slo.tpot_s == float(fields.get("slo_tpot_ms", live.tpot_ms)) / 1e3
    assert slo.thinking_tokens == fields.get("slo_thinking_tokens", 3)
    assert slo.weight == live.weight


def test_every_field_is_documented():
    page = PAGE.read_text()
    for field in FIELDS:
        assert f"`{field}`" in page
