"""JITServe, Scorpio and AdaServe, worked by hand."""

from dataclasses import replace

import pytest
from hand_made import ENGINE, answer, best_effort, context, decode, ids, prompt, tokens

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.policies.adaserve import AdaServePolicy
from slo_opt.policies.interface import RoundEnd
from slo_opt.policies.jitserve import JitServePolicy
from slo_opt.policies.lengths import OracleLengths, QuantileLengths
from slo_opt.policies.sarathi import SarathiPolicy
from slo_opt.policies.scorpio import ScorpioPolicy


def jitserve(lengths: dict[str, int], engine: EngineModel = ENGINE, **setting: float) -> JitServePolicy:
    oracle = OracleLengths({name: [length] for name, length in lengths.items()})
    return JitServePolicy(context(engine, oracle), **setting)


def test_jitserve_prefers_the_short_output():
    jobs = [decode("d", 0.05), prompt("a", 30), prompt("b", 30)]
    assert tokens(answer(jitserve({"a": 500, "b": 10, "d": 9}), jobs)) == {"d": 1, "b": 30, "a": 9}


def test_jitserve_prefers_value():
    jobs = [decode("d", 0.05), prompt("a", 30, value=100.0), prompt("b", 30)]
    assert tokens(answer(jitserve({"a": 500, "b": 10, "d": 9}), jobs)) == {"d": 1, "a": 30, "b": 9}


def test_jitserve_serves_last_what_can_earn_nothing():
    jobs = [decode("d", 0.05), prompt("a", 30, due_s=0.01), prompt("b", 30, missed=True), prompt("c", 30)]
    assert tokens(answer(jitserve({"a": 1, "b": 1, "c": 500, "d": 9}), jobs)) == {"d": 1, "c": 30, "a": 9}


def test_jitserve_works_without_any_idea_of_lengths_and_learns():
    jobs = [decode("d", 0.05), prompt("a", 30, round_slo="loose"), prompt("b", 29)]
    assert tokens(answer(JitServePolicy(context()), jobs)) == {"d": 1, "b": 29, "a": 10}
    learner = JitServePolicy(context(lengths=QuantileLengths(0.5)))
    ended = [RoundEnd("x", "loose", 5, False), RoundEnd("y", "tight", 900, False)]
    assert tokens(answer(learner, jobs, finished=ended)) == {"d": 1, "a": 30, "b": 9}


def test_jitserve_displaces_a_request_of_half_its_density_for_memory_once():
    engine = replace(ENGINE, kv_blocks=4)

    def ask(length: int, **has: int):
        jobs = [decode("d", 0.05, context=50, **has), prompt("a", 10)]
        return answer(jitserve({"d": length, "a": 10}, engine), jobs, engine=engine)

    # `a` takes 10 tokens of prompt at 1 ms and 10 steps of 11 ms: a value of 1 in 0.12 s.
    assert ids(ask(25).preempted) == ["d"]
    assert tokens(ask(25)) == {"a": 10}
    assert not ask(18).preempted
    assert not ask(25, preemptions=1).preempted


def test_jitserve_displaces_nobody_where_that_would_not_be_enough():
    engine = replace(ENGINE, kv_blocks=8)
    jobs = [decode("d", 0.05, context=50), decode("e", 0.05, context=50, preemptions=1), prompt("a", 70)]
    assert not answer(jitserve({"d": 900, "e": 900, "a": 1}, engine), jobs, engine=engine).preempted


def test_jitserve_serves_the_densest_decodes_where_not_all_fit():
    engine = replace(ENGINE, max_num_batched_tokens=1)
    jobs = [decode("d", 0.05), decode("e", 0.05)]
    assert tokens(answer(jitserve({"d": 50, "e": 5}, engine), jobs, engine=engine)) == {"e": 1}


def test_jitserve_sees_at_the_next_frame_that_a_deadline_has_passed():
    blocked = decode("d", 0.0, tpot_s=0.005)  # leaves no time for a prompt
    waits = [prompt("a", 30, due_s=0.5), prompt("b", 30)]
    for frame, order in ((1, ["b", "a"]), (9, ["a", "b"])):
        policy = jitserve({"a": 1, "b": 50, "d": 9}, frame_batches=frame)
        assert tokens(answer(policy, [blocked, *waits])) == {"d": 1}
        assert list(tokens(answer(policy, waits, now_s=1.0))) == order


def test_jitserve_measures_its_steps():
    # `a`: 400 tokens of prompt at 1 ms, 10 steps; `b`: 10 tokens, 30 steps. Steps of 11 ms favour b, of 200 ms a.
    jobs = [prompt("a", 400), prompt("b", 10)]
    quick, slow = (jitserve({"a": 10, "b": 30}, frame_batches=1) for _ in range(2))
    for _ in range(60):
        answer(slow, [], last_batch_s=0.2)
    assert list(tokens(answer(quick, jobs))) == ["b", "a"]
    assert list(tokens(answer(slow, jobs, last_batch_s=0.2))) == ["a", "b"]


def test_scorpio_decodes_by_credit():
    policy = ScorpioPolicy(context())
    jobs = [decode("t", 9.0), decode("l", 9.0, tpot_s=0.15)]
    batches = [tokens(answer(policy, jobs)) for _ in range(6)]
    assert batches == [{"t": 1}, {"t": 1}, {"t": 1, "l": 1}] * 2


def test_scorpio_goes_by_deadline_and_rejects_the_hopeless():
    policy = ScorpioPolicy(context())
    jobs = [decode("d", 9.0), prompt("a", 30, due_s=5.0), prompt("b", 30, due_s=1.0), prompt("c", 60, due_s=0.05)]
    allocation = answer(policy, jobs)
    assert ids(allocation.rejected) == ["c"]
    assert tokens(allocation) == {"d": 1, "b": 30, "a": 9}


def test_scorpio_counts_the_decodes_beside_a_prompt():
    # Alone 78 tokens take 88 ms; beside one decode they take two batches of 39 tokens and 50 ms.
    def ask(due_s: float, *others):
        return ids(answer(ScorpioPolicy(context()), [*others, prompt("a", 78, due_s=due_s)]).rejected)

    assert ask(0.089) == []
    assert ask(0.099, decode("d", 9.0)) == ["a"]
    assert ask(0.101, decode("d", 9.0)) == []


def test_scorpio_never_rejects_after_the_first_token():
    allocation = answer(ScorpioPolicy(context()), [prompt("a", 30, due_s=0.0, emitted_tokens=3)])
    assert not allocation.rejected
    assert tokens(allocation) == {"a": 30}


def test_scorpio_admits_up_to_the_virtual_batch_that_keeps_the_tightest_tpot():
    engine = EngineModel("slow", "by hand", (RooflinePiece(1e-2, 1e-2),))  # 4 tokens in 50 ms

    def ask(halves: int) -> dict[str, int]:
        loose = [decode(f"l{k}", 9.0, tpot_s=0.1) for k in range(halves)]  # without credit in the first batch
        jobs = [decode("t", 9.0), *loose, prompt("a", 1), prompt("b", 1)]
        return tokens(answer(ScorpioPolicy(context(engine)), jobs, engine=engine))

    assert ask(6) == {"t": 1}  # 1 + 6 / 2 and another
    assert ask(4) == {"t": 1, "a": 1}
    assert ask(2) == {"t": 1, "a": 1, "b": 1}


def test_scorpio_serves_the_highest_credit_first_where_not_all_fit():
    engine = replace(ENGINE, max_num_batched_tokens=1)
    policy = ScorpioPolicy(context(engine))
    jobs = [decode("d", 9.0), decode("e", 9.0)]
    assert [tokens(answer(policy, jobs, engine=engine)) for _ in range(3)] == [{"d": 1}, {"e": 1}, {"d": 1}]


def adaserve(**setting: float) -> AdaServePolicy:
    return AdaServePolicy(context(), **{"idle_factor": 0.0, **setting})


def test_adaserve_drafts_for_those_that_lag():
    # At the end of a step of 50 ms `late` owes 1 + 80/50 = 2.6 tokens: 1 + 0.8 + 0.64 + 0.512 are expected of 4.
    jobs = [decode("late", -0.03), decode("early", 0.06)]
    assert tokens(answer(adaserve(), jobs, acceptance=0.8, last_batch_s=0.05)) == {"early": 1, "late": 4}


def test_adaserve_serves_the_furthest_behind_first_within_the_budget():
    jobs = [*(decode(f"d{k}", 9.0) for k in range(35)), decode("x", -0.03), decode("y", -0.2)]
    counts = tokens(answer(adaserve(), jobs, acceptance=0.8, last_batch_s=0.05))
    assert (counts["y"], counts["x"]) == (4, 1)
    assert sum(counts.values()) == 40


def test_adaserve_gives_idle_tokens_to_the_shortest_drafts_after_prompts():
    jobs = [decode("d", 9.0), decode("e", 9.0)]
    # 0.3 times 50 ms hold 5 tokens.
    assert tokens(answer(adaserve(idle_factor=0.3), jobs, acceptance=0.8)) == {"d": 3, "e": 2}
    with_prompt = tokens(answer(adaserve(idle_factor=0.3), [*jobs, prompt("a", 2)], acceptance=0.8))
    assert with_prompt == {"d": 2, "e": 1, "a": 2}


def test_adaserve_gives_idle_tokens_to_nobody_who_has_drafts_while_others_have_none():
    jobs = [decode("late", -0.03), decode("d", 9.0), decode("e", 9.0)]
    # 0.36 times 50 ms hold 8 tokens: 4 of them are needed, 2 decode, 2 are left.
    counts = tokens(answer(adaserve(idle_factor=0.3601), jobs, acceptance=0.8, last_batch_s=0.05))
    assert counts == {"late": 4, "d": 2, "e": 2}


def test_adaserve_without_a_draft_model_is_sarathi():
    jobs = [decode("d", -1.0), prompt("a", 100)]
    assert tokens(answer(adaserve(idle_factor=1.0), jobs)) == tokens(answer(SarathiPolicy(context()), jobs))


@pytest.mark.parametrize("free", [0, 1])
def test_adaserve_decodes_plainly_where_drafts_do_not_fit_in_memory(free: int):
    engine = replace(ENGINE, kv_blocks=2 + free)
    jobs = [decode("d", -0.03, context=14), decode("e", 9.0, context=14)]
    counts = tokens(answer(adaserve(), jobs, acceptance=0.8, last_batch_s=0.05, engine=engine))
    assert counts == {"e": 1, "d": 4 if free else 1}


def test_best_effort_jobs_get_no_drafts():
    jobs = [decode("d", 9.0), best_effort(decode("s", -9.0))]
    assert tokens(answer(adaserve(), jobs, acceptance=0.8, last_batch_s=0.05)) == {"d": 1, "s": 1}
