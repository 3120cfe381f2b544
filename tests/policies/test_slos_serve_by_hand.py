"""SLOs-Serve, worked by hand. A batch of n tokens takes 10 + n ms: 40 tokens in a period of 50 ms."""

from dataclasses import replace

import pytest
from hand_made import ENGINE, answer, best_effort, context, decode, ids, prompt, tokens

from slo_opt.domain.engines import engine_named
from slo_opt.domain.speculation import best_draft_lengths
from slo_opt.policies.interface import Allocation, Job, RoundEnd, Standing
from slo_opt.policies.lengths import OracleLengths
from slo_opt.policies.slos_serve import SlosServePolicy


def policy(**setting: float) -> SlosServePolicy:
    return SlosServePolicy(context(), **setting)


def decide(jobs: list[Job], **setting: float) -> Allocation:
    return answer(policy(**setting), jobs)


def crowd() -> list[Job]:
    """A long prompt, and two short ones that fit together but not beside it: 400 + 150 tokens in less than 0.5 s."""
    return [prompt("long", 400, due_s=0.49), prompt("a", 150, due_s=0.5), prompt("b", 150, due_s=0.5)]


def test_the_declined_are_best_effort_for_good():
    planner, jobs = policy(), crowd()
    first = answer(planner, jobs)
    assert (ids(first.demoted), ids(first.admitted), tokens(first)) == (["long"], ["a", "b"], {"a": 40})
    long = jobs[0]
    long.standing = Standing.BEST_EFFORT  # as the engine does
    alone = prompt("c", 25, due_s=0.6)
    assert tokens(answer(planner, [long, alone], now_s=0.1)) == {"c": 25, "long": 15}
    assert tokens(answer(planner, [long], now_s=0.2)) == {"long": 400}


def test_a_replica_that_only_prefills_plans_for_no_decodes():
    def admitted(decodes: bool) -> list[str]:
        policy = SlosServePolicy(context(decodes=decodes))
        allocation = answer(policy, [prompt("a", 150, due_s=0.2), prompt("b", 300, due_s=0.5)])
        return ids(allocation.admitted)

    # 450 tokens in half a second: too many if the first decodes from 0.2 s on, in batches of 50 ms.
    assert len(admitted(True)) == 1
    assert admitted(False) == ["a", "b"]


def test_without_a_best_effort_tier_the_declined_are_rejected():
    allocation = decide(crowd(), best_effort=False)
    assert (ids(allocation.rejected), ids(allocation.demoted)) == (["long"], [])


def test_greedy_admission_takes_the_earliest_deadline():
    allocation = decide(crowd(), greedy=True)
    assert (ids(allocation.demoted), tokens(allocation)) == (["a", "b"], {"long": 40})


def test_best_effort_is_preempted_where_others_need_its_memory():
    engine = replace(ENGINE, kv_blocks=6)
    jobs = [best_effort(decode("s", 0.0, context=64, engine=engine)), prompt("a", 48, due_s=5.0)]
    lengths = OracleLengths({"a": [10], "s": [900]})
    allocation = answer(SlosServePolicy(context(engine, lengths)), jobs, engine=engine)
    assert (ids(allocation.preempted), tokens(allocation)) == (["s"], {"a": 40})


def test_who_is_late_becomes_best_effort_without_a_plan():
    jobs = [decode("d", 0.05), decode("e", 0.05, missed=True), prompt("a", 41, due_s=0.05), prompt("b", 20, due_s=0.05)]
    assert ids(decide(jobs).demoted) == ["e", "a"]


def test_a_promise_is_kept_over_better_requests():
    planner = policy()
    long = prompt("long", 400, due_s=0.49)
    assert ids(answer(planner, [long]).admitted) == ["long"]
    long.standing = Standing.ADMITTED
    later = [long, *crowd()[1:]]
    assert ids(answer(planner, later).demoted) == ["a", "b"]


def test_memory_is_planned_for_its_peak_or_as_it_grows():
    # 120 tokens for the prompt and its output are 8 blocks; the decode will hold 7 in the end, and 3 in 1.3 s.
    engine = replace(ENGINE, kv_blocks=11)
    jobs = [decode("d", 0.05, context=10, engine=engine), prompt("a", 80, due_s=0.3)]
    lengths = OracleLengths({"d": [101], "a": [40]})

    def declined(**setting: bool) -> list[str]:
        return ids(answer(SlosServePolicy(context(engine, lengths), **setting), jobs, engine=engine).demoted)

    assert declined() == ["a"]
    assert declined(growth=True) == []


def test_a_tier_of_twice_the_tpot_joins_every_other_batch():
    planner = policy()
    tight, loose = decode("t", 0.051), decode("l", 0.101, tpot_s=0.1)
    backlog = prompt("p", 9000, done=16, due_s=900.0)
    joined = []
    for k in range(6):
        batch = tokens(answer(planner, [tight, loose, backlog], now_s=k * 0.05))
        assert sum(batch.values()) == 40
        joined.append(sorted(set(batch) - {"p"}))
        for job in (tight, loose):
            job.due_s += job.tpot_s * batch.get(job.id, 0)
    assert joined == [["t"], ["l", "t"]] * 3


def test_a_decode_that_lags_joins_every_batch():
    planner, late = policy(), decode("l", -0.15, tpot_s=0.1)
    for k in range(3):
        batch = tokens(answer(planner, [decode("t", 9.0 + k), late], now_s=k * 0.05))
        assert batch == {"l": 1}
        late.due_s += 0.1


def test_a_batch_lasts_one_period_of_the_tightest_tier_present():
    backlog = prompt("p", 9000, done=16, due_s=900.0)
    assert tokens(decide([decode("t", 0.05), backlog])) == {"t": 1, "p": 39}
    assert tokens(decide([decode("l", 0.1, tpot_s=0.1), backlog])) == {"l": 1, "p": 89}
    assert tokens(decide([backlog])) == {"p": 40}  # of the tightest class
    # A tier that no step keeps: 1.2 times the least TTFT of 11 ms.
    assert tokens(decide([decode("x", 0.005, tpot_s=0.005), backlog])) == {"x": 1, "p": 2}


def test_a_batch_ends_at_a_first_token_deadline_inside_the_period():
    backlog = prompt("p", 9000, done=16, due_s=900.0)
    jobs = [decode("t", 0.05), prompt("a", 10, due_s=0.03), backlog]
    assert tokens(decide(jobs)) == {"t": 1, "a": 10, "p": 9}


def test_fixed_batches_hold_a_number_of_tokens():
    jobs = [decode("t", 0.05), prompt("p", 900, done=16, due_s=900.0)]
    assert tokens(decide(jobs, dynamic=False, fixed_tokens=100)) == {"t": 1, "p": 99}


def test_the_engine_does_not_idle_while_all_are_ahead():
    assert tokens(decide([decode("t", 5.0), decode("u", 6.0)])) == {"t": 1, "u": 1}


def test_best_effort_fills_the_period():
    jobs = [decode("t", 0.05), best_effort(decode("s", 0.0)), best_effort(prompt("r", 900))]
    assert tokens(decide(jobs)) == {"t": 1, "s": 1, "r": 38}


@pytest.mark.parametrize(
    ("at_s", "new", "ended", "setting", "planned"),
    [
        (0.05, 1, 0, {}, False),
        (0.1, 1, 0, {}, True),
        (0.05, 1, 0, {"replan_s": 0.0}, True),
        (0.05, 10, 0, {}, False),
        (0.05, 11, 0, {}, True),
        (0.05, 1, 6, {}, False),
        (0.05, 1, 7, {}, True),
    ],
)
def test_when_the_plan_is_made_anew(at_s: float, new: int, ended: int, setting: dict[str, float], planned: bool):
    planner, running = policy(**setting), decode("d", 9.0)
    answer(planner, [running, prompt("first", 10)])
    # Each has the time alone, in 0.35 s, but not at the 78 % that the decode leaves.
    jobs = [running, *(prompt(f"a{k}", 300, due_s=at_s + 0.35) for k in range(new))]
    over = [RoundEnd(f"e{k}", "tight", 5, False) for k in range(ended)]
    assert len(answer(planner, jobs, now_s=at_s, finished=over).demoted) == (new if planned else 0)


def test_an_engine_without_work_plans_at_once():
    planner = policy()
    answer(planner, [prompt("first", 10)])
    assert ids(answer(planner, crowd(), now_s=0.0).demoted) == ["long"]


def test_drafts_stretch_the_period_up_to_where_a_decode_is_due():
    engine = engine_named("opt-6.7b-a100-draft")
    tight, loose = best_draft_lengths(engine, [0.05, 0.1], [5, 20], 0.8, 8)
    period_s = min(0.05 * (1 - 0.8**tight) / 0.2, 0.1 * (1 - 0.8**loose) / 0.2)
    assert 0.1 < period_s < 0.2

    def ask(due_s: float, **setting: bool) -> tuple[dict[str, int], int]:
        jobs = [decode(f"t{k}", 0.2, engine=engine) for k in range(5)]
        jobs += [decode(f"l{k}", due_s, tpot_s=0.1, engine=engine) for k in range(20)]
        jobs.append(prompt("p", 9000, done=16, due_s=900.0, engine=engine))
        policy = SlosServePolicy(context(engine), **setting)
        batch = tokens(answer(policy, jobs, engine=engine, acceptance=0.8))
        return batch, batch.pop("p")

    drafted = {**{f"t{k}": tight for k in range(5)}, **{f"l{k}": loose for k in range(20)}}
    decodes = 5 * tight + 20 * loose
    assert ask(0.2) == (drafted, engine.max_tokens_within(period_s, draft_steps=tight - 1) - decodes)
    assert ask(0.1) == (drafted, engine.max_tokens_within(0.1, draft_steps=tight - 1) - decodes)
    # Overdue whatever happens: nobody is the better for a short batch.
    assert ask(0.01) == ask(0.2)


def test_drafts_can_be_left_out():
    engine = engine_named("opt-6.7b-a100-draft")
    jobs = [decode("t", 0.05, engine=engine), prompt("p", 9000, done=16, due_s=900.0, engine=engine)]
    policy = SlosServePolicy(context(engine), speculate=False)
    assert tokens(answer(policy, jobs, engine=engine, acceptance=0.8)) == {"t": 1, "p": 365}  # 366 in 50 ms


def test_between_plans_the_undecided_begin_in_the_order_of_deadlines():
    planner = policy()
    promised = prompt("a", 90, due_s=0.5)
    answer(planner, [decode("d", 9.0), promised])
    promised.standing = Standing.ADMITTED
    allocation = answer(planner, [decode("d", 9.0), promised, prompt("b", 30, due_s=0.4)], now_s=0.05)
    assert (tokens(allocation), allocation.admitted) == ({"b": 30, "a": 10}, [])
