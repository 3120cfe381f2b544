"""What a call holds: prompts of the wanted length, shared beginnings, and the SLO."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Prefix, Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.slo_fields import request_slo
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.prompts import FIRST_ID, PromptMaker
from slo_opt.replay.rounds import Round, rounds_of
from slo_opt.replay.slo_fields import headers, priorities, xargs
from slo_opt.traces.small import small_instance

SEEDS = st.integers(0, 10**9)
CLASSES = {
    "fast": SloClass("fast", tpot_ms=20, ttft_ms=250),
    "thinking": SloClass("thinking", tpot_ms=80, ttft_slowdown=5),
    "slow": SloClass("slow", tpot_ms=100, ttft_ms=5000, weight=2),
    "equal": SloClass("equal", tpot_ms=20, ttft_ms=9000),
    "free": SloClass("free", tpot_ms=1, ttft_ms=1, best_effort=True),
}


def instance_of(*stages: Stage) -> tuple[Instance, Round]:
    """One request, and its first round."""
    request = Request("r", 0.0, stages)
    return Instance("one", (request,), CLASSES, engine_named("llama-3-8b-h100")), rounds_of(request)[0]


@given(SEEDS)
def test_rounds_hold_all_stages_in_order(seed: int):
    for request in small_instance(random.Random(seed)).requests:
        rounds = rounds_of(request)
        assert tuple(stage for each in rounds for stage in each.stages) == request.stages
        assert all(each.stages[0].prompt_tokens for each in rounds)
        assert not any(stage.prompt_tokens for each in rounds for stage in each.stages[1:])
        assert sum(each.output_tokens for each in rounds) == request.output_tokens


@given(
    SEEDS, st.integers(20, 5000), st.lists(st.integers(0, 2**63), max_size=4), st.integers(1, 64), st.integers(0, 90)
)
def test_prompts_have_the_wanted_length_and_beginning(
    seed: int, vocab: int, blocks: list[int], block: int, own_tokens: int
):
    prompt_tokens = max(len(blocks) * block + own_tokens, 1)
    maker = PromptMaker(seed, vocab)

    def prompt(index: int, ids: list[int]) -> list[int]:
        request = Request(f"r{index}", 0.0, (Stage(prompt_tokens, 1, "fast"),), Prefix(block, tuple(ids)))
        return maker.first(index, request, rounds_of(request)[0])

    mine, other = prompt(0, blocks), prompt(1, blocks)
    assert len(mine) == len(other) == prompt_tokens
    assert all(FIRST_ID <= token < vocab for token in mine)
    assert mine[: len(blocks) * block] == other[: len(blocks) * block]
    assert PromptMaker(seed, vocab).first(0, *_first(prompt_tokens, block, blocks)) == mine


def _first(prompt_tokens: int, block: int, blocks: list[int]) -> tuple[Request, Round]:
    request = Request("r0", 0.0, (Stage(prompt_tokens, 1, "fast"),), Prefix(block, tuple(blocks)))
    return request, rounds_of(request)[0]


def test_prompts_that_share_no_block_share_nothing_else():
    maker = PromptMaker(3, 1000)
    found = []
    for index, prefix in enumerate((None, None, Prefix(64, (1,)), Prefix(64, (2,)))):
        request = Request(f"r{index}", 0.0, (Stage(64, 1, "fast"),), prefix)
        found += [
            maker.first(index, request, rounds_of(request)[0], warm_up=warm_up)
            for warm_up in ((False, True) if prefix is None else (False,))
        ]
    found.append(PromptMaker(4, 1000).first(0, Request("r", 0.0, (Stage(64, 1, "fast"),)), Round((Stage(64, 1, "x"),))))
    assert len({tuple(prompt[:16]) for prompt in found}) == len(found)


@given(SEEDS, st.lists(st.integers(0, 900), max_size=60), st.integers(1, 80), st.integers(0, 90))
def test_a_later_round_repeats_what_was_said_as_far_as_it_may(seed: int, said: list[int], new: int, cached: int):
    served = Round((Stage(new, 1, "fast", cached_tokens=cached),))
    prompt = PromptMaker(seed, 1000).later(0, 1, said, served)
    kept = min(cached, len(said))
    assert len(prompt) == cached + new
    assert prompt[:kept] == said[:kept]
    other = PromptMaker(seed, 1000).later(0, 2, said, served)
    assert kept + 8 > len(prompt) or prompt[kept:] != other[kept:]


@pytest.mark.parametrize("size", [-1, 0, 19])
def test_a_vocabulary_too_small_is_refused(size: int):
    with pytest.raises(InvalidInputError, match="vocab_size"):
        PromptMaker(0, size)
    with pytest.raises(InvalidInputError, match="vocab_size"):
        ReplayOptions(vocab_size=size)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"warmup": -1},
        {"max_concurrency": 0},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"max_lateness_s": float("inf")},
    ],
)
def test_options_out_of_range_are_refused(values: dict):
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        ReplayOptions(**values)


def test_fields_by_hand():
    instance, plain = instance_of(Stage(100, 7, "fast"))
    assert xargs(instance, plain) == {"slo_class": "fast", "slo_ttft_ms": 250, "slo_tpot_ms": 20}
    assert xargs(instance, plain, name_class=False) == {"slo_ttft_ms": 250, "slo_tpot_ms": 20}
    assert headers(instance, plain) == {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "20"}
    instance, both = instance_of(Stage(100, 7, "thinking"), Stage(0, 5, "slow"), Stage(0, 3, "fast"))
    ttft_ms = 5e3 * instance.engine.zero_load_ttft_s(100)
    assert xargs(instance, both) == {
        "slo_class": "fast",
        "slo_ttft_ms": pytest.approx(ttft_ms),
        "slo_tpot_ms": 20,
        "slo_thinking_tpot_ms": 80,
        "slo_thinking_tokens": 7,
    }
    assert headers(instance, both) == {"x-slo-ttft-ms": f"{ttft_ms:.6g}", "x-slo-tpot-ms": "20"}
    instance, free = instance_of(Stage(100, 7, "free"))
    assert xargs(instance, free) == {"slo_class": "free", "slo_best_effort": 1}
    assert headers(instance, free) == {}
    assert priorities(instance) == {"fast": 0, "equal": 0, "thinking": 1, "slow": 2, "free": 3}


@given(SEEDS)
def test_the_scheduler_reads_what_replay_writes(seed: int):
    instance = small_instance(random.Random(seed))
    live = {slo.name: LiveClass(slo.name, tpot_ms=1, ttft_ms=1) for slo in instance.slo_classes.values()}
    config = BridgeConfig(classes=live)
    for request in instance.requests:
        for served in rounds_of(request):
            first, last = served.stages[0], served.stages[-1]
            read = request_slo(xargs(instance, served), config)
            assert read.slo == last.slo
            assert read.best_effort == instance.slo_classes[last.slo].best_effort
            if read.best_effort:
                continue
            assert read.ttft_s == pytest.approx(instance.ttft_limit_s(first))
            assert read.tpot_s == pytest.approx(instance.tpot_s(last))
            thinks = len(served.stages) > 1
            assert read.thinking_tpot_s == (pytest.approx(instance.tpot_s(first)) if thinks else None)
            assert read.thinking_tokens == (first.output_tokens if thinks else None)
