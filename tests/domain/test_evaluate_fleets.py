"""Fleets under the checker: engines that differ, KV that moves and gets lost, late delivery; each rule broken once."""

import math
from dataclasses import replace

import pytest
from evaluate_cases import PLAIN, batch, plain_instance, request, rules

from slo_opt.domain.engine import RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.fleet import ALWAYS_S, Fleet, FleetReplica, KvTransfer
from slo_opt.domain.request import Stage
from slo_opt.domain.schedule import Batch, Move, Schedule

# 6 prompt tokens take 16 s, a decode 11 s; on the slow engine 26 s and 21 s.
ONE = plain_instance(request("a", 0.0, Stage(6, 3, "main")))
SLOW = replace(PLAIN, name="slow", pieces=(RooflinePiece(1.0, 20.0),))
TRANSFER = KvTransfer(per_token_s=0.5, latency_s=1.0)  # 4 s for 6 tokens


def fleet(*engines, up_s=ALWAYS_S) -> Fleet:
    """Replicas with these engines; the first is up when `up_s` says."""
    replicas = [FleetReplica(f"r{k}", engine) for k, engine in enumerate(engines)]
    return Fleet((replace(replicas[0], up_s=up_s), *replicas[1:]), TRANSFER)


def played(found: Fleet, *steps: Batch | Move, instance=ONE) -> Evaluation:
    """The evaluation of batches and moves."""
    batches = [step for step in steps if isinstance(step, Batch)]
    return evaluate(instance, Schedule.from_batches(batches, moves=[s for s in steps if isinstance(s, Move)]), found)


PREFILL = batch(0, {0: 6})
MOVE = Move(0, 0, 16.0, 1, 20.0)
DECODES = (batch(20, {0: 1}, replica=1), batch(31, {0: 1}, replica=1))
TWO = fleet(PLAIN, PLAIN)


def test_each_replica_has_its_own_batch_times():
    outcome = played(fleet(PLAIN, SLOW), PREFILL, MOVE, batch(20, {0: 1}, replica=1), batch(41, {0: 1}, replica=1))
    assert outcome.violations == ()
    assert outcome.busy_s == 16 + 21 + 21
    assert outcome.stages[0][0].last_token_s == 62
    assert rules(played(fleet(PLAIN, SLOW), PREFILL, MOVE, *DECODES)) == ["overlap"]


def test_each_replica_has_its_own_limits():
    tiny = replace(PLAIN, kv_blocks=1)
    assert rules(played(fleet(PLAIN, tiny), PREFILL, MOVE, *DECODES)) == ["kv-capacity"]
    assert rules(played(fleet(tiny, PLAIN), PREFILL, MOVE, *DECODES)) == ["kv-capacity"]
    narrow = replace(PLAIN, max_num_batched_tokens=5)
    assert rules(played(fleet(narrow, PLAIN), PREFILL, MOVE, *DECODES)) == ["token-budget"]
    assert rules(played(fleet(PLAIN, narrow), PREFILL, MOVE, *DECODES)) == []


def test_kv_moves_and_the_request_goes_on_there():
    outcome = played(TWO, PREFILL, MOVE, *DECODES)
    assert outcome.violations == ()
    assert outcome.finished.tolist() == [True]
    assert outcome.attained.tolist() == [True]


def test_lost_kv_is_prefilled_again_elsewhere():
    half, lost = batch(0, {0: 3}), Move(0, 0, 14.0)
    again = (batch(14, {0: 6}, replica=1), batch(30, {0: 1}, replica=1), batch(41, {0: 1}, replica=1))
    assert played(TWO, half, lost, *again).violations == ()
    assert rules(played(TWO, half, *again)) == ["moved-replica", "too-many-tokens"]
    # After the first token its context is 7 tokens.
    late = Move(0, 0, 16.0)
    assert played(TWO, PREFILL, late, batch(16, {0: 7}, replica=1), batch(33, {0: 1}, replica=1)).violations == ()


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("transfer-time", (PREFILL, Move(0, 0, 16.0, 1, 19.9), batch(20, {0: 1}, replica=1))),
        ("moved-in-batch", (PREFILL, Move(0, 0, 15.9, 1, 20.0), batch(20, {0: 1}, replica=1))),
        ("moved-in-batch", (PREFILL, Move(0, 0, 15.0))),
        ("in-transfer", (PREFILL, MOVE, batch(19, {0: 1}, replica=1))),
        ("in-transfer", (PREFILL, MOVE, batch(17, {0: 1}))),
        ("moved-replica", (PREFILL, MOVE, batch(20, {0: 1}))),
        ("moved-replica", (PREFILL, *DECODES)),
        ("moved-not-held", (MOVE, batch(16, {0: 6}))),
        ("moved-not-held", (PREFILL, Move(0, 1, 16.0, 0, 20.0))),
        ("moved-not-held", (PREFILL, MOVE, Move(0, 0, 17.0, 1, 30.0), *DECODES)),
        ("moved-not-held", (PREFILL, MOVE, Move(0, 0, 17.0), *DECODES)),
        ("moved-not-held", (PREFILL, batch(16, {0: 1}), batch(27, {0: 1}), Move(0, 0, 38.0))),
        ("unknown-replica", (PREFILL, Move(0, 0, 16.0, 2, 20.0))),
        ("unknown-replica", (PREFILL, Move(0, -1, 16.0))),
        ("preempted-not-running", (PREFILL, MOVE, batch(17, {0: 6}, preempted=[0]))),
        ("delivered-early", (batch(0, {0: 6}, delivered_s=15.0),)),
        ("delivered-early", (batch(0, {0: 6}, delivered_s=math.nan),)),
    ],
)
def test_rule(rule, steps):
    found = rules(played(TWO, *steps))
    assert rule in found
    # One wrong step may make others wrong: nothing else is found where it is the last.
    if isinstance(steps[-1], Move) or steps[-1].delivered_s is not None:
        assert found == [rule]


def test_a_source_holds_its_kv_until_it_has_arrived():
    other = request("b", 0.0, Stage(4, 1, "main"))
    instance = plain_instance(request("a", 0.0, Stage(6, 3, "main")), other, kv_blocks=2)
    two = fleet(instance.engine, instance.engine)
    assert rules(played(two, PREFILL, MOVE, batch(16, {1: 4}), instance=instance)) == ["kv-capacity"]
    assert rules(played(two, PREFILL, MOVE, batch(20, {1: 4}), instance=instance)) == []


def test_a_target_holds_kv_from_the_batch_in_which_it_begins():
    other = request("b", 0.0, Stage(4, 1, "main"))
    instance = plain_instance(request("a", 0.0, Stage(6, 3, "main")), other, kv_blocks=2)
    two = fleet(instance.engine, instance.engine)
    beside = batch(20, {1: 4}, replica=1)
    assert rules(played(two, PREFILL, MOVE, beside, batch(34, {0: 1}, replica=1), instance=instance)) == []
    together = batch(20, {0: 1, 1: 4}, replica=1)
    assert rules(played(two, PREFILL, MOVE, together, instance=instance)) == ["kv-capacity"]


def test_a_replica_serves_only_while_it_is_up():
    assert played(fleet(PLAIN, up_s=((0.0, 16.0), (20.0, math.inf))), PREFILL, Move(0, 0, 16.0)).violations == ()
    for up_s in (((0.1, math.inf),), ((-5.0, 15.9), (20.0, math.inf))):
        assert "replica-down" in rules(played(fleet(PLAIN, up_s=up_s), PREFILL))
    assert "replica-down" in rules(played(fleet(PLAIN, up_s=((0.0, 8.0), (8.0, math.inf))), PREFILL))


def test_kv_is_lost_with_its_replica():
    restarted = fleet(PLAIN, up_s=((0.0, 16.0), (20.0, math.inf)))
    decodes = (batch(20, {0: 1}), batch(31, {0: 1}))
    assert rules(played(restarted, PREFILL, *decodes)) == ["kv-outlives-replica"]
    assert rules(played(restarted, PREFILL)) == ["kv-outlives-replica"]
    assert rules(played(restarted, PREFILL, Move(0, 0, 16.0), *decodes)) == []  # a chunk of its context, and another
    broken = fleet(PLAIN, PLAIN, up_s=((0.0, 18.0), (25.0, math.inf)))
    assert rules(played(broken, PREFILL, MOVE, *DECODES)) == ["kv-outlives-replica"]  # in the middle of its transfer


def test_tokens_count_when_they_are_delivered():
    steps = (batch(0, {0: 6}), batch(16, {0: 1}), batch(27, {0: 1}))
    late = played(TWO, *(replace(step, delivered_s=101.0) for step in steps))
    assert late.violations == ()
    assert late.stages[0][0].first_token_s == 101
    assert late.attained.tolist() == [False]  # due at 100 s
    fine = played(TWO, *(replace(step, delivered_s=99.0) for step in steps))
    assert fine.attained.tolist() == [True]


def test_a_round_is_released_when_the_one_before_is_delivered():
    rounds = plain_instance(request("a", 0.0, Stage(6, 1, "main"), Stage(6, 1, "main", pause_s=5.0)))
    first = batch(0, {0: 6}, delivered_s=30.0)
    assert rules(played(TWO, first, batch(35, {0: 6}, replica=1), instance=rounds)) == []
    assert rules(played(TWO, first, batch(34, {0: 6}, replica=1), instance=rounds)) == ["before-release"]


def test_moves_survive_json():
    schedule = Schedule.from_batches([PREFILL, batch(50, {0: 1}, delivered_s=70.0)], moves=[Move(0, 0, 40.0), MOVE])
    again = Schedule.from_dict(schedule.to_dict())
    assert again.moves == schedule.moves == (MOVE, Move(0, 0, 40.0))
    assert again.delivered_s == schedule.delivered_s == {1: 70.0}
    assert "moves" not in Schedule.from_batches([PREFILL]).to_dict()


def test_senseless_fleets_are_refused():
    with pytest.raises(InvalidInputError, match="target and end_s"):
        Move(0, 0, 1.0, target=1)
    with pytest.raises(InvalidInputError, match="finite"):
        Move(0, 0, 1.0, 1, math.nan)
    with pytest.raises(InvalidInputError, match="its own id"):
        Fleet((FleetReplica("a", PLAIN), FleetReplica("a", PLAIN)))
    with pytest.raises(InvalidInputError, match="no replicas"):
        Fleet(())
    with pytest.raises(InvalidInputError, match="latency_s is -1"):
        KvTransfer(latency_s=-1.0)
    with pytest.raises(InvalidInputError, match="bytes/s"):
        KvTransfer.over(1e5, 0.0)
    with pytest.raises(InvalidInputError, match="order of start"):
        replace(Schedule.from_batches([PREFILL]), moves=(Move(0, 0, 2.0), Move(0, 0, 1.0)))


def test_kv_travels_at_the_speed_of_its_link():
    assert KvTransfer.over(131072, 25e9, 0.002).seconds(1000) == pytest.approx(0.002 + 1000 * 131072 / 25e9)
    assert TRANSFER.seconds(6) == 4.0
