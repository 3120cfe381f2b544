"""Prefill first and Sarathi-Serve, worked by hand."""

from dataclasses import replace

import pytest
from hand_made import ENGINE, answer, best_effort, context, decode, prompt, tokens

from slo_opt.policies.prefill_first import PrefillFirstPolicy
from slo_opt.policies.sarathi import SarathiPolicy


def test_prefill_first_stops_decodes_for_whole_prompts():
    policy = PrefillFirstPolicy(context(), budget_tokens=300)
    jobs = [decode("d", 0.0), prompt("a", 100), prompt("b", 200), prompt("c", 50)]
    assert tokens(answer(policy, jobs)) == {"a": 100, "b": 200}


def test_prefill_first_cuts_no_prompt_that_would_share_the_batch():
    policy = PrefillFirstPolicy(context(), budget_tokens=300)
    assert tokens(answer(policy, [prompt("a", 100), prompt("b", 201), prompt("c", 50)])) == {"a": 100}


def test_prefill_first_gives_a_prompt_above_the_budget_batches_of_its_own():
    policy = PrefillFirstPolicy(context(), budget_tokens=300)
    assert tokens(answer(policy, [decode("d", 0.0), prompt("a", 500), prompt("b", 10)])) == {"a": 300}
    rest = [decode("d", 0.0), prompt("a", 500, done=300), prompt("b", 10)]
    assert tokens(answer(policy, rest)) == {"a": 200, "b": 10}


def test_prefill_first_decodes_when_no_prompt_fits_in_memory():
    engine = replace(ENGINE, kv_blocks=4)
    jobs = [decode("d", 0.0, context=20), decode("e", 0.0, context=20), prompt("a", 16)]
    assert tokens(answer(PrefillFirstPolicy(context(engine)), jobs, engine=engine)) == {"d": 1, "e": 1}


def test_prefill_first_leaves_one_percent_of_the_blocks_free():
    engine = replace(ENGINE, kv_blocks=200)
    policy = PrefillFirstPolicy(context(engine))
    running = decode("d", 0.0, context=16 * 197 - 1)
    assert running.kv_blocks == 197
    assert tokens(answer(policy, [running, prompt("a", 16)], engine=engine)) == {"a": 16}
    assert tokens(answer(PrefillFirstPolicy(context(engine)), [running, prompt("b", 17)], engine=engine)) == {"d": 1}


def test_prefill_first_fills_an_idle_engine_to_the_last_block():
    engine = replace(ENGINE, kv_blocks=200)
    assert tokens(answer(PrefillFirstPolicy(context(engine)), [prompt("a", 3200)], engine=engine)) == {"a": 3200}


def test_prefill_first_begins_no_best_effort_prompt_beside_decodes():
    policy = PrefillFirstPolicy(context())
    assert tokens(answer(policy, [decode("d", 0.0), best_effort(prompt("s", 10))])) == {"d": 1}
    assert tokens(answer(PrefillFirstPolicy(context()), [best_effort(prompt("s", 10))])) == {"s": 10}


def test_sarathi_fills_up_to_the_tokens_of_the_tightest_tpot():
    jobs = [decode("d", 0.0), prompt("a", 100), prompt("b", 100)]
    assert tokens(answer(SarathiPolicy(context()), jobs)) == {"d": 1, "a": 39}


def test_sarathi_goes_on_with_begun_prompts_before_it_begins_new_ones():
    jobs = [prompt("p", 30, done=20, release_s=1.0), decode("d", 0.0), prompt("a", 100, release_s=2.0)]
    assert tokens(answer(SarathiPolicy(context()), jobs)) == {"d": 1, "p": 10, "a": 29}


def test_sarathi_leaves_no_decode_out_for_its_cap():
    jobs = [*(decode(f"d{k}", 0.0) for k in range(60)), prompt("a", 100)]
    assert tokens(answer(SarathiPolicy(context()), jobs)) == {f"d{k}": 1 for k in range(60)}


@pytest.mark.parametrize(("setting", "cap"), [({"cap_factor": 2.0}, 90), ({"cap_tokens": 70}, 70)])
def test_sarathi_takes_its_cap_from_its_setting(setting: dict[str, float], cap: int):
    assert tokens(answer(SarathiPolicy(context(), **setting), [prompt("a", 100)])) == {"a": cap}


def test_sarathi_ignores_deadlines():
    jobs = [prompt("a", 100, due_s=9.0), prompt("b", 100, due_s=0.2)]
    assert tokens(answer(SarathiPolicy(context()), jobs)) == {"a": 40}
