"""EDF and QoServe, worked by hand."""

from dataclasses import replace

from hand_made import ENGINE, answer, best_effort, context, decode, ids, prompt, tokens

from slo_opt.policies.edf import EdfPolicy
from slo_opt.policies.qoserve import QoServePolicy


def test_edf_serves_the_earlier_deadline_although_it_came_later():
    jobs = [decode("d", 0.05), prompt("a", 100, due_s=9.0), prompt("b", 100, due_s=1.0)]
    assert tokens(answer(EdfPolicy(context()), jobs)) == {"d": 1, "b": 39}


def test_edf_makes_the_chunk_as_long_as_the_slack_of_the_decodes():
    jobs = [decode("d", 0.1), decode("e", 0.3), prompt("a", 400)]
    assert tokens(answer(EdfPolicy(context()), jobs)) == {"d": 1, "e": 1, "a": 88}


def test_edf_keeps_the_pace_of_a_decode_that_is_late_already():
    jobs = [decode("d", -5.0), prompt("a", 400)]
    assert tokens(answer(EdfPolicy(context()), jobs)) == {"d": 1, "a": 39}


def test_edf_serves_the_most_urgent_decodes_where_not_all_fit():
    engine = replace(ENGINE, max_num_batched_tokens=1)
    jobs = [decode("d", 2.0), decode("e", 1.0), decode("f", 3.0)]
    assert tokens(answer(EdfPolicy(context(engine)), jobs, engine=engine)) == {"e": 1}


def test_edf_passes_from_a_begun_prompt_to_a_more_urgent_one():
    jobs = [decode("d", 0.05), prompt("a", 100, due_s=9.0, done=16), prompt("b", 20, due_s=1.0)]
    assert tokens(answer(EdfPolicy(context()), jobs)) == {"d": 1, "b": 20, "a": 19}


def test_edf_gives_best_effort_what_is_left_before_the_next_deadline():
    jobs = [decode("d", 0.041), best_effort(prompt("s", 400))]
    assert tokens(answer(EdfPolicy(context()), jobs)) == {"d": 1, "s": 30}
    assert tokens(answer(EdfPolicy(context()), [decode("d", 0.9), jobs[1]])) == {"d": 1, "s": 39}
    assert tokens(answer(EdfPolicy(context()), [prompt("a", 20, due_s=0.03), jobs[1]])) == {"a": 20}
    assert tokens(answer(EdfPolicy(context()), [jobs[1]])) == {"s": 400}


# QoServe: batches of 40 tokens keep 50 ms, so a prompt token counts 1.25 ms.


def test_qoserve_keeps_deadline_order_when_the_load_is_low():
    jobs = [prompt("long", 200, due_s=1.0), prompt("short", 100, due_s=1.2)]
    order = tokens(answer(QoServePolicy(context()), jobs))
    assert list(order) == ["long", "short"]


def test_qoserve_lets_short_prompts_pass_under_load():
    # 1,300 tokens wait, 1.6 s of work: 1.0 + 200 * 8 ms = 2.6 against 1.2 + 100 * 8 ms = 2.0.
    jobs = [prompt("long", 200, due_s=1.0), prompt("short", 100, due_s=1.2), prompt("z", 1000, due_s=5.0)]
    order = tokens(answer(QoServePolicy(context()), jobs))
    assert list(order) == ["short", "long", "z"]


def test_qoserve_keeps_a_margin_of_a_fifth():
    jobs = [decode("d", 0.06), prompt("a", 400)]
    assert tokens(answer(QoServePolicy(context()), jobs)) == {"d": 1, "a": 39}


def test_qoserve_relegates_what_cannot_be_on_time_unless_it_holds_kv():
    hopeless, begun = prompt("a", 400, due_s=0.49), prompt("b", 800, due_s=0.49, done=400)
    allocation = answer(QoServePolicy(context()), [decode("d", 0.06), hopeless, begun])
    assert ids(allocation.demoted) == ["a"]
    assert tokens(allocation) == {"d": 1, "b": 39}
    in_time = prompt("c", 400, due_s=0.51)
    assert not answer(QoServePolicy(context()), [in_time]).demoted


def test_qoserve_serves_the_relegated_when_nothing_else_waits():
    allocation = answer(QoServePolicy(context()), [prompt("a", 400, due_s=0.0)])
    assert ids(allocation.demoted) == ["a"]
    assert tokens(allocation) == {"a": 400}
