"""Requests, SLO classes and instances refuse what no model can mean, and say how to mend it."""

import math
from dataclasses import replace

import pytest
from evaluate_cases import PLAIN, plain_instance, request

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass

ONE = Stage(5, 3, "main")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "empty name"),
        ({"ttft_ms": None}, "exactly one of ttft_ms and ttft_slowdown"),
        ({"ttft_slowdown": 2.0}, "exactly one of ttft_ms and ttft_slowdown"),
        ({"tpot_ms": 0.0}, "tpot_ms is 0.0"),
        ({"tpot_ms": math.nan}, "tpot_ms is nan"),
        ({"tpot_ms": math.inf}, "tpot_ms is inf"),
        ({"ttft_ms": -1.0}, "ttft_ms is -1.0"),
        ({"ttft_ms": 86_400_001.0}, "expected milliseconds"),
        ({"ttft_ms": None, "ttft_slowdown": 0.99}, "no engine can be on time"),
        ({"ttft_ms": None, "ttft_slowdown": math.nan}, "expected a multiple >= 1"),
        ({"weight": 0.0}, "weight is 0.0"),
        ({"weight": math.inf}, "weight is inf"),
        ({"weight": math.nan}, "weight is nan"),
    ],
)
def test_bad_slo_classes(fields, says):
    with pytest.raises(InvalidInputError, match=says):
        SloClass(**{"name": "chat", "tpot_ms": 50.0, "ttft_ms": 500.0, **fields})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens is -1"),
        ({"prompt_tokens": 10_000_001}, "prompt_tokens is 10000001"),
        ({"output_tokens": 0}, "output_tokens is 0"),
        ({"cached_tokens": -2}, "cached_tokens is -2"),
        ({"pause_s": -0.1}, "pause_s is -0.1"),
        ({"pause_s": math.nan}, "pause_s is nan"),
    ],
)
def test_bad_stages(fields, says):
    with pytest.raises(InvalidInputError, match=says):
        Stage(**{"prompt_tokens": 5, "output_tokens": 3, "slo": "main", **fields})


@pytest.mark.parametrize(
    ("name", "arrival_s", "stages", "says"),
    [
        ("", 0.0, (ONE,), "empty id"),
        ("a", -1.0, (ONE,), "arrival_s is -1.0"),
        ("a", math.nan, (ONE,), "arrival_s is nan"),
        ("a", 0.0, (), "no stage"),
        ("a", 0.0, (Stage(0, 3, "main"),), "first stage has no prompt"),
        ("a", 0.0, (ONE, Stage(0, 3, "main", pause_s=1.0)), "neither pause_s nor cached_tokens"),
        ("a", 0.0, (ONE, Stage(0, 3, "main", cached_tokens=1)), "neither pause_s nor cached_tokens"),
    ],
)
def test_bad_requests(name, arrival_s, stages, says):
    with pytest.raises(InvalidInputError, match=says):
        Request(name, arrival_s, stages)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "no request"),
        ([request("a", 0.0, ONE), request("a", 1.0, ONE)], "'a' appears twice"),
        ([request("a", 1.0, ONE), request("b", 0.5, ONE)], "'b' arrives at 0.5 s, before"),
        ([request("a", 0.0, replace(ONE, slo="nope"))], "'nope', which is not defined; defined: main, quick, spare"),
    ],
)
def test_bad_instances(requests, says):
    with pytest.raises(InvalidInputError, match=says):
        plain_instance(*requests)


def test_bad_number_of_replicas():
    with pytest.raises(InvalidInputError, match="num_replicas is 0"):
        plain_instance(request("a", 0.0, ONE), replicas=0)


def test_token_counts_and_values():
    asked = request("a", 0.0, ONE, Stage(0, 4, "quick"))
    instance = plain_instance(asked)
    assert (asked.prompt_tokens, asked.output_tokens) == (5, 7)
    assert instance.slo_of(asked).name == "quick"
    assert instance.value_of(asked) == 3.0
    assert instance.value_of(request("b", 0.0, Stage(5, 1, "spare"))) == 0.0
    assert instance.tpot_s(ONE) == 20.0
    assert instance.ttft_limit_s(ONE) == 100.0


def test_slowdown_is_a_multiple_of_the_zero_load_ttft():
    classes = {"x": SloClass("x", tpot_ms=50.0, ttft_slowdown=3.0)}
    engine = replace(PLAIN, prefill_pair_s=1.0)
    instance = Instance("case", (request("a", 0.0, Stage(2, 1, "x", cached_tokens=4)),), classes, engine)
    assert instance.ttft_limit_s(instance.requests[0].stages[0]) == 3 * (12 + 5 + 6)


def test_instances_do_not_change():
    classes = {"main": SloClass("main", tpot_ms=50.0, ttft_ms=500.0)}
    instance = Instance("case", (request("a", 0.0, ONE),), classes, PLAIN)
    classes["other"] = classes["main"]
    assert list(instance.slo_classes) == ["main"]
    with pytest.raises(TypeError):
        instance.slo_classes["other"] = classes["main"]  # type: ignore[index]
    other = instance.with_requests((request("b", 2.0, ONE),))
    assert [r.id for r in other.requests] == ["b"]
    assert other.engine is instance.engine


MEAN, SHIFTS = ScoreRule.MEAN_TPOT, ScoreRule.FIRST_LATE_SHIFTS


@pytest.mark.parametrize(
    ("stages", "more", "reason"),
    [
        # TTFT 100 s against 10 s + 1 s a token.
        ([Stage(90, 1, "main")], {}, None),
        ([Stage(91, 1, "main")], {}, "TTFT limit of 100000.0 ms is below the zero-load TTFT of 101000.0 ms"),
        ([Stage(95, 1, "main")], {"rule": SHIFTS}, None),
        ([Stage(96, 1, "main")], {"rule": SHIFTS}, "TTFT limit of 105000.0 ms"),
        # In batches of 50 a prompt of 80 takes 2 * 10 + 80 s.
        ([Stage(80, 1, "main")], {"max_num_batched_tokens": 50}, None),
        ([Stage(81, 1, "main")], {"max_num_batched_tokens": 50}, "TTFT limit"),
        # 12 s TPOT against steps of 11 s and more.
        ([Stage(5, 9, "quick")], {"rule": MEAN}, None),
        ([Stage(5, 9, "quick")], {"rule": MEAN, "decode_context_s": 0.2}, None),
        ([Stage(6, 9, "quick")], {"rule": MEAN, "decode_context_s": 0.2}, "TPOT of 12000.0 ms is below the least step"),
        ([Stage(6, 1, "quick")], {"rule": MEAN, "decode_context_s": 0.2}, None),
        ([Stage(6, 9, "quick")], {"decode_context_s": 0.2}, None),  # later tokens of dslo may use the TTFT's slack
        # A second phase decodes over the tokens of the first, but for its last one.
        ([Stage(2, 4, "main"), Stage(0, 1, "quick")], {"rule": MEAN, "decode_context_s": 0.2}, None),
        ([Stage(2, 5, "main"), Stage(0, 1, "quick")], {"rule": MEAN, "decode_context_s": 0.2}, "TPOT of 12000.0 ms"),
        # 5 + 3 tokens of context, 7 of them stored.
        ([ONE], {"max_model_len": 8}, None),
        ([ONE], {"max_model_len": 7}, "8 tokens of context exceed the engine's max_model_len of 7"),
        ([Stage(6, 3, "main")], {"kv_blocks": 2}, None),
        ([Stage(7, 3, "main")], {"kv_blocks": 2}, "need 3 KV blocks; the engine has 2"),
        ([ONE, Stage(91, 1, "main")], {}, "TTFT limit"),
    ],
)
def test_unservable_reason(stages, more, reason):
    instance = plain_instance(request("a", 0.0, *stages), **more)
    found = instance.unservable_reason(instance.requests[0])
    assert (found is None) if reason is None else (found is not None and reason in found)
