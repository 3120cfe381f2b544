"""PolyServe on one replica, worked by hand."""

from hand_made import answer, best_effort, context, decode, prompt, tokens

from slo_opt.policies.polyserve import PolyServePolicy


def test_polyserve_serves_prompts_as_they_came_within_the_tightest_budget():
    jobs = [decode("d", 0.1), decode("e", 0.3), prompt("a", 60, due_s=9.0), prompt("b", 60, due_s=1.0, release_s=0.1)]
    assert tokens(answer(PolyServePolicy(context()), jobs)) == {"d": 1, "e": 1, "a": 60, "b": 28}


def test_polyserve_by_deadline_lets_the_urgent_pass():
    jobs = [decode("d", 0.1), prompt("a", 60, due_s=9.0), prompt("b", 60, due_s=1.0, release_s=0.1)]
    assert tokens(answer(PolyServePolicy(context(), by_deadline=True), jobs)) == {"d": 1, "b": 60, "a": 29}


def test_polyserve_with_a_static_chunk_does_not_look_at_budgets():
    jobs = [decode("d", 0.02), prompt("a", 400)]
    assert tokens(answer(PolyServePolicy(context()), jobs)) == {"d": 1, "a": 9}
    assert tokens(answer(PolyServePolicy(context(), dynamic=False, fixed_tokens=101), jobs)) == {"d": 1, "a": 100}


def test_polyserve_keeps_the_pace_of_a_decode_that_is_late_already():
    assert tokens(answer(PolyServePolicy(context()), [decode("d", -5.0), prompt("a", 400)])) == {"d": 1, "a": 39}


def test_polyserve_gives_best_effort_what_is_left():
    jobs = [decode("d", 0.9), best_effort(prompt("s", 400))]
    assert tokens(answer(PolyServePolicy(context()), jobs)) == {"d": 1, "s": 39}
    assert tokens(answer(PolyServePolicy(context()), jobs[1:])) == {"s": 400}
