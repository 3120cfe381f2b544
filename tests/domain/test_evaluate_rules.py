"""Each rule of the replay, broken once and alone."""

import math

import numpy as np
import pytest
from evaluate_cases import PLAIN, batch, plain_instance, replayed, request, rules

from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.request import Stage
from slo_opt.domain.schedule import Batch, Schedule

ONE = plain_instance(request("a", 0.0, Stage(6, 3, "main")))
TWO = plain_instance(request("a", 0.0, Stage(6, 3, "main")), request("b", 5.0, Stage(4, 1, "main")), replicas=2)


def test_legal_schedule_has_no_violation():
    outcome = replayed(ONE, batch(0, {0: 4}), batch(14, {0: 2}), batch(26, {0: 1}), batch(37, {0: 1}))
    assert outcome.violations == ()
    assert outcome.legal
    assert outcome.finished.tolist() == [True]
    assert outcome.busy_s == 14 + 12 + 11 + 11
    assert outcome.num_tokens == 8
    assert outcome.peak_kv_blocks == 2  # 6 + 2 tokens in blocks of 4; the third output token is never stored


@pytest.mark.parametrize(
    ("rule", "instance", "batches"),
    [
        ("overlap", ONE, [batch(0, {0: 4}), batch(13.9, {0: 2})]),
        ("overlap", ONE, [batch(math.nan, {0: 4})]),
        ("unknown-replica", ONE, [batch(0, {0: 4}, replica=1)]),
        ("unknown-replica", ONE, [batch(0, {0: 4}, replica=-1)]),
        ("empty-batch", ONE, [batch(0, {})]),
        ("unknown-request", ONE, [batch(0, {1: 4})]),
        ("unknown-request", ONE, [batch(0, {-1: 4})]),
        ("no-tokens", ONE, [batch(0, {0: 0})]),
        ("no-tokens", ONE, [batch(0, {0: -3})]),
        ("before-release", TWO, [batch(4.9, {1: 4})]),
        ("too-many-tokens", ONE, [batch(0, {0: 7})]),
        ("too-many-tokens", ONE, [batch(0, {0: 6}), batch(16, {0: 2})]),
        ("already-finished", TWO, [batch(5, {1: 4}), batch(19, {1: 1})]),
        ("moved-replica", TWO, [batch(0, {0: 4}), batch(14, {0: 2}, replica=1)]),
        ("moved-replica", TWO, [batch(0, {0: 6}), batch(16, {0: 1}, replica=1)]),
        ("preempted-not-running", ONE, [batch(0, {0: 4}, preempted=[0])]),
        ("preempted-not-running", TWO, [batch(0, {0: 4}), batch(14, {1: 4}, preempted=[0], replica=1)]),
        ("preempted-not-running", TWO, [batch(5, {1: 4}), batch(19, {0: 4}, preempted=[1])]),
        ("too-many-tokens", ONE, [batch(0, {0: 6}), batch(16, {0: 2}, emitted=[3])]),
        ("too-many-tokens", ONE, [batch(0, {0: 6}), batch(16, {0: 2}, emitted=[0])]),
        ("too-many-tokens", ONE, [batch(0, {0: 6}), batch(16, {0: 4}, emitted=[4])]),
    ],
)
def test_rule(rule, instance, batches):
    outcome = replayed(instance, *batches)
    assert rules(outcome) == [rule]
    assert not outcome.legal


def test_repeated_request():
    outcome = replayed(ONE, Batch(0, [0, 0], [3, 3]))
    assert rules(outcome) == ["repeated-request"]


def test_token_budget():
    instance = plain_instance(request("a", 0.0, Stage(6, 3, "main")), max_num_batched_tokens=5)
    assert rules(replayed(instance, batch(0, {0: 6}))) == ["token-budget"]
    assert rules(replayed(instance, batch(0, {0: 5}))) == []


def test_sequence_limit():
    requests = (request("a", 0.0, Stage(6, 3, "main")), request("b", 0.0, Stage(4, 1, "main")))
    assert rules(replayed(plain_instance(*requests, max_num_seqs=1), batch(0, {0: 1, 1: 1}))) == ["sequence-limit"]
    assert rules(replayed(plain_instance(*requests, max_num_seqs=2), batch(0, {0: 1, 1: 1}))) == []


def test_model_length():
    # 6 + 3 tokens of context: legal at 9, not at 8, and then it is the last token that is too many.
    steps = [batch(0, {0: 6}), batch(16, {0: 1}), batch(27, {0: 1})]
    asked = request("a", 0.0, Stage(6, 3, "main"))
    assert rules(replayed(plain_instance(asked, max_model_len=9), *steps)) == []
    assert rules(replayed(plain_instance(asked, max_model_len=8), *steps)) == ["model-length"]
    assert rules(replayed(plain_instance(asked, max_model_len=8), *steps[:2])) == []
    assert rules(replayed(plain_instance(asked, max_model_len=5), batch(0, {0: 1}))) == ["model-length"]


def test_unordered_batches():
    # A preempted request must not resume on the other replica in the past.
    ordered = [batch(0, {0: 4}), batch(20, {1: 1}, preempted=[0]), batch(20, {0: 6}, replica=1)]
    assert rules(replayed(TWO, *ordered)) == []
    schedule = Schedule.from_batches(ordered)
    swapped = Schedule(
        np.array([0.0, 20.0, 14.0]),
        schedule.replica,
        schedule.offset,
        schedule.request,
        schedule.tokens,
        None,
        schedule.preempted,
    )
    assert rules(evaluate(TWO, swapped)) == ["unordered"]


def test_replicas_run_side_by_side():
    outcome = replayed(TWO, batch(0, {0: 6}), batch(5, {1: 4}, replica=1), batch(16, {0: 1}), batch(27, {0: 1}))
    assert outcome.violations == ()
    assert outcome.attained.tolist() == [True, True]
    assert outcome.peak_kv_blocks == 2  # the larger of the replicas, not their sum


class TestKvBlocks:
    """Blocks of 4 tokens."""

    ASKED = (request("a", 0.0, Stage(8, 2, "main")), request("b", 0.0, Stage(4, 1, "main")))

    def test_counts_blocks_after_the_batch(self):
        assert replayed(plain_instance(*self.ASKED, kv_blocks=1), batch(0, {0: 4})).legal
        assert rules(replayed(plain_instance(*self.ASKED, kv_blocks=1), batch(0, {0: 5}))) == ["kv-capacity"]

    def test_held_while_idle(self):
        steps = [batch(0, {0: 8}), batch(18, {1: 4})]
        assert replayed(plain_instance(*self.ASKED, kv_blocks=3), *steps).legal
        assert rules(replayed(plain_instance(*self.ASKED, kv_blocks=2), *steps)) == ["kv-capacity"]

    def test_decode_stores_the_token_before(self):
        # The step that yields token 2 stores token 1: 9 tokens, 3 blocks.
        steps = [batch(0, {0: 8}), batch(18, {0: 1})]
        assert replayed(plain_instance(*self.ASKED, kv_blocks=3), *steps).peak_kv_blocks == 3
        assert rules(replayed(plain_instance(*self.ASKED, kv_blocks=2), *steps)) == ["kv-capacity"]

    def test_released_with_the_last_token(self):
        steps = [batch(0, {0: 8}), batch(18, {0: 1}), batch(29, {1: 4})]
        assert replayed(plain_instance(*self.ASKED, kv_blocks=3), *steps).legal

    def test_held_in_the_batch_that_finishes(self):
        steps = [batch(0, {0: 8}), batch(18, {0: 1, 1: 4})]
        assert rules(replayed(plain_instance(*self.ASKED, kv_blocks=3), *steps)) == ["kv-capacity"]
        assert replayed(plain_instance(*self.ASKED, kv_blocks=4), *steps).peak_kv_blocks == 4

    def test_preemption_frees(self):
        steps = [batch(0, {0: 8}), batch(18, {1: 4}, preempted=[0])]
        assert replayed(plain_instance(*self.ASKED, kv_blocks=2), *steps).legal

    def test_cached_tokens_are_held(self):
        instance = plain_instance(request("a", 0.0, Stage(1, 1, "main", cached_tokens=7)))
        assert replayed(instance, batch(0, {0: 1})).peak_kv_blocks == 2

    def test_a_round_frees_at_its_end(self):
        rounds = request("a", 0.0, Stage(8, 1, "main"), Stage(2, 1, "main", pause_s=100.0))
        instance = plain_instance(rounds, request("b", 0.0, Stage(8, 1, "main")), kv_blocks=2)
        assert replayed(instance, batch(0, {0: 8}), batch(18, {1: 8}), batch(118, {0: 2})).legal

    def test_thinking_keeps_its_blocks(self):
        phases = request("a", 0.0, Stage(8, 1, "main"), Stage(0, 1, "main"))
        instance = plain_instance(phases, request("b", 0.0, Stage(4, 1, "main")), kv_blocks=2)
        assert rules(replayed(instance, batch(0, {0: 8}), batch(18, {1: 4}))) == ["kv-capacity"]


class TestBatchTime:
    """Every term of the batch time shows in the end of a batch."""

    def busy_s(self, steps, **engine):
        return replayed(
            plain_instance(request("a", 0.0, Stage(6, 9, "main", cached_tokens=2)), **engine), *steps
        ).busy_s

    def test_plain(self):
        assert self.busy_s([batch(0, {0: 6})]) == 16

    def test_host_and_requests(self):
        assert self.busy_s([batch(0, {0: 6})], host_s=0.25, request_s=0.5) == 16.75

    def test_prefill_pairs(self):
        # Tokens 3..8 of the context attend to 3 + 4 + ... + 8 = 33 tokens, in one chunk or in two.
        assert self.busy_s([batch(0, {0: 6})], prefill_pair_s=1.0) == 16 + 33
        assert self.busy_s([batch(0, {0: 2}), batch(50, {0: 4})], prefill_pair_s=1.0) == 12 + 14 + 33

    def test_decode_context(self):
        # 8 tokens in the cache at the first step, 9 at the second.
        steps = [batch(0, {0: 6}), batch(16, {0: 1}), batch(50, {0: 1})]
        assert self.busy_s(steps, decode_context_s=1.0) == 16 + 11 + 8 + 11 + 9

    def test_draft_steps(self):
        engine = {"pieces": (type(PLAIN.pieces[0])(1.0, 10.0, 0.5),)}
        steps = [batch(0, {0: 6}), batch(16, {0: 3}, emitted=[2])]
        assert self.busy_s(steps, **engine) == 16 + (10 + 3 + 2 * 0.5)
