"""The token clock under each score rule, by hand. A batch takes 10 s and 1 s a token; TTFT 100 s, TPOT 20 s."""

import pytest
from evaluate_cases import batch, plain_instance, replayed, request, rules

from slo_opt.domain.request import Stage
from slo_opt.domain.slo import ScoreRule

DSLO, MEAN, SHIFTS = ScoreRule.DSLO, ScoreRule.MEAN_TPOT, ScoreRule.FIRST_LATE_SHIFTS


def lateness(rule, stages, *ends, arrival_s=0.0):
    """Lateness of each stage when its decode tokens end at these times and prefills run alone.

    Each entry is (end, tokens): the batch starts 10 + tokens before its end.
    """
    instance = plain_instance(request("a", arrival_s, *stages), rule=rule)
    outcome = replayed(instance, *(batch(end - 10 - tokens, {0: tokens}) for end, tokens in ends))
    assert outcome.violations == ()
    assert outcome.attained[0] == (outcome.finished[0] and all(s.lateness_s <= 1e-7 for s in outcome.stages[0]))
    return [stage.lateness_s for stage in outcome.stages[0]]


def plain(first, *others, prompt=5):
    return [(first, prompt), *((end, 1) for end in others)]


THREE = [Stage(5, 3, "main")]


@pytest.mark.parametrize(
    ("rule", "ends", "expected"),
    [
        # Due at 100, 120, 140 whatever came before.
        (DSLO, (100, 120, 140), 0),
        (DSLO, (15, 120, 140), 0),
        (DSLO, (15, 26, 37), -85),
        (DSLO, (101, 120, 140), 1),
        (DSLO, (15, 121, 140), 1),
        (DSLO, (15, 120, 143), 3),
        # First by 100; the last at most 40 s after the first; the one between is free.
        (MEAN, (100, 120, 140), 0),
        (MEAN, (15, 26, 55), 0),
        (MEAN, (15, 44, 56), 1),
        (MEAN, (102, 120, 140), 2),
        (MEAN, (90, 110, 132), 2),
        # First by 105; tokens 21 s apart from the later of 100 and the first.
        (SHIFTS, (100, 121, 142), 0),
        (SHIFTS, (15, 121, 142), 0),
        (SHIFTS, (105, 126, 147), 0),
        (SHIFTS, (105, 126, 148), 1),
        (SHIFTS, (106, 127, 148), 1),
        (SHIFTS, (103, 125, 140), 1),
    ],
)
def test_three_tokens(rule, ends, expected):
    assert lateness(rule, THREE, *plain(*ends)) == pytest.approx([expected])


def test_arrival_moves_the_clock():
    assert lateness(DSLO, THREE, *plain(107, 127, 147), arrival_s=7.0) == pytest.approx([0])


def test_single_token():
    for rule, due in ((DSLO, 100), (MEAN, 100), (SHIFTS, 105)):
        assert lateness(rule, [Stage(5, 1, "main")], (due, 5)) == pytest.approx([0])


class TestThinkingAndResponse:
    """Two tokens at 20 s, then two at 12 s: one decode, one clock."""

    STAGES = (Stage(5, 2, "main"), Stage(0, 2, "quick"))

    @pytest.mark.parametrize(
        ("rule", "ends", "expected"),
        [
            # Due at 100, 120 and then 132, 144: the clock of the second phase starts where the first was due.
            (DSLO, (100, 120, 132, 144), (0, 0)),
            (DSLO, (15, 26, 132, 144), (-85, 0)),
            (DSLO, (15, 26, 133, 145), (-85, 1)),
            (DSLO, (15, 121, 132, 144), (1, 0)),
            # The second phase has 24 s from the last token of the first.
            (MEAN, (15, 35, 46, 59), (0, 0)),
            (MEAN, (15, 35, 46, 60), (0, 1)),
            (MEAN, (15, 26, 39, 50), (-9, 0)),
            # 21 and 12.6 s a token.
            (SHIFTS, (100, 121, 133.6, 146.2), (0, 0)),
            (SHIFTS, (104, 125, 137.6, 150.2), (0, 0)),
            (SHIFTS, (104, 125, 137.6, 151.2), (0, 1)),
        ],
    )
    def test_clock(self, rule, ends, expected):
        assert lateness(rule, self.STAGES, *plain(*ends)) == pytest.approx(expected)

    def test_release_and_due_of_the_second_phase(self):
        instance = plain_instance(request("a", 0.0, *self.STAGES))
        outcome = replayed(instance, batch(0, {0: 5}), *(batch(t, {0: 1}) for t in (15, 26, 37)))
        thinking, response = outcome.stages[0]
        assert (thinking.release_s, thinking.first_token_s, thinking.last_token_s, thinking.first_due_s) == (
            0,
            15,
            26,
            100,
        )
        assert (response.release_s, response.first_token_s, response.last_token_s) == (26, 37, 48)
        assert response.first_due_s == 132


class TestRounds:
    """A second round 30 s after the last token of the first, with its own clock."""

    STAGES = (Stage(5, 2, "main"), Stage(4, 2, "quick", cached_tokens=3, pause_s=30.0))

    def test_own_clock(self):
        # Last token of round one at 26; released at 56; first token by 106, second by 118.
        ends = [*plain(15, 26), (106, 4), (118, 1)]
        assert lateness(DSLO, self.STAGES, *ends) == pytest.approx([-85, 0])
        assert lateness(MEAN, self.STAGES, *ends) == pytest.approx([-9, 0])
        assert lateness(SHIFTS, self.STAGES, *plain(15, 26), (108.5, 4), (121.1, 1)) == pytest.approx([-90, 0])

    def test_not_before_the_pause_ends(self):
        instance = plain_instance(request("a", 0.0, *self.STAGES))
        first = [batch(0, {0: 5}), batch(15, {0: 1})]
        assert rules(replayed(instance, *first, batch(55.9, {0: 4}))) == ["before-release"]
        assert rules(replayed(instance, *first, batch(56, {0: 4}))) == []

    def test_rounds_may_change_replica(self):
        instance = plain_instance(request("a", 0.0, *self.STAGES), replicas=2)
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {0: 1}), batch(56, {0: 4}, replica=1))
        assert outcome.violations == ()

    def test_context_is_that_of_the_round(self):
        instance = plain_instance(request("a", 0.0, *self.STAGES), decode_context_s=1.0)
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {0: 1}), batch(61, {0: 4}), batch(75, {0: 1}))
        assert outcome.violations == ()
        assert outcome.busy_s == 15 + (11 + 5) + 14 + (11 + 7)  # 3 cached + 4 prompt tokens at the last step

    def test_first_round_may_be_late_in_the_trace(self):
        late = request("a", 1.0, Stage(5, 1, "main", pause_s=4.0))
        instance = plain_instance(late)
        assert rules(replayed(instance, batch(4.9, {0: 5}))) == ["before-release"]
        assert replayed(instance, batch(5.0, {0: 5})).stages[0][0].first_due_s == 105


class TestPreemption:
    """Everything known is computed again; the last output token, which was never stored, comes with it."""

    INSTANCE = plain_instance(
        request("a", 0.0, Stage(5, 3, "main")), request("b", 0.0, Stage(1, 1, "main")), decode_context_s=1.0
    )
    HEAD = (batch(0, {0: 5}), batch(15, {0: 1}), batch(31, {1: 1}, preempted=[0]))

    def test_recompute_yields_the_next_token(self):
        # Known: 5 prompt + 2 output tokens. Seven tokens are prefilled and the third comes out.
        outcome = replayed(self.INSTANCE, *self.HEAD, batch(42, {0: 7}))
        assert outcome.violations == ()
        assert outcome.finished.tolist() == [True, True]
        assert outcome.stages[0][0].last_token_s == 42 + 17
        assert outcome.busy_s == 15 + (11 + 5) + 11 + 17

    def test_recompute_in_chunks(self):
        # The last known token alone is a decode step over the six before it.
        outcome = replayed(self.INSTANCE, *self.HEAD, batch(42, {0: 6}), batch(58, {0: 1}))
        assert outcome.violations == ()
        assert outcome.finished[0]
        assert outcome.busy_s == 15 + 16 + 11 + 16 + (11 + 6)

    def test_no_decode_before_the_recompute(self):
        outcome = replayed(self.INSTANCE, *self.HEAD, batch(42, {0: 1}))
        assert not outcome.finished[0]
        assert outcome.violations == ()  # a chunk of one token

    def test_more_than_is_known(self):
        assert rules(replayed(self.INSTANCE, *self.HEAD, batch(42, {0: 8}))) == ["too-many-tokens"]

    def test_cached_tokens_are_lost(self):
        instance = plain_instance(
            request("a", 0.0, Stage(5, 1, "main", cached_tokens=2)), request("b", 0.0, Stage(1, 1, "main"))
        )
        head = (batch(0, {0: 4}), batch(14, {1: 1}, preempted=[0]))
        assert replayed(instance, *head, batch(25, {0: 7})).finished[0]
        assert not replayed(instance, *head, batch(25, {0: 5})).finished[0]

    def test_may_resume_elsewhere(self):
        instance = plain_instance(
            request("a", 0.0, Stage(5, 3, "main")), request("b", 0.0, Stage(1, 1, "main")), replicas=2
        )
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {1: 1}, preempted=[0]), batch(15, {0: 6}, replica=1))
        assert outcome.violations == ()

    def test_preempted_prefill(self):
        instance = plain_instance(request("a", 0.0, Stage(5, 1, "main")), request("b", 0.0, Stage(1, 1, "main")))
        outcome = replayed(instance, batch(0, {0: 4}), batch(14, {1: 1}, preempted=[0]), batch(25, {0: 5}))
        assert outcome.finished.tolist() == [True, True]


class TestSpeculation:
    """A step may yield several tokens at once, at most as many as it schedules."""

    def test_tokens_of_one_step_share_its_end(self):
        instance = plain_instance(request("a", 0.0, Stage(5, 4, "main")))
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {0: 4}, emitted=[3]))
        assert outcome.violations == ()
        assert outcome.finished[0]
        assert outcome.stages[0][0].last_token_s == 15 + 14
        assert outcome.peak_kv_blocks == 2  # 5 + 3 tokens: the rejected one is not kept

    def test_across_a_phase_boundary(self):
        instance = plain_instance(request("a", 0.0, Stage(5, 2, "main"), Stage(0, 2, "quick")))
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {0: 3}, emitted=[3]))
        assert outcome.violations == ()
        assert outcome.finished[0]
        assert [s.last_token_s for s in outcome.stages[0]] == [28, 28]

    def test_not_across_rounds(self):
        instance = plain_instance(request("a", 0.0, Stage(5, 2, "main"), Stage(3, 2, "quick")))
        assert rules(replayed(instance, batch(0, {0: 5}), batch(15, {0: 2}, emitted=[2]))) == ["too-many-tokens"]

    def test_prefill_in_the_same_batch(self):
        instance = plain_instance(request("a", 0.0, Stage(5, 3, "main")), request("b", 0.0, Stage(4, 2, "main")))
        outcome = replayed(instance, batch(0, {0: 5}), batch(15, {0: 2, 1: 4}, emitted=[2, 1]))
        assert outcome.violations == ()
        assert outcome.stages[1][0].first_token_s == 31


def test_value_counts_attained_requests_only():
    instance = plain_instance(
        request("late", 0.0, Stage(60, 1, "quick")),
        request("good", 0.0, Stage(5, 1, "quick")),
        request("spare", 0.0, Stage(5, 1, "spare")),
        request("open", 0.0, Stage(5, 2, "main")),
        request("never", 0.0, Stage(5, 2, "main")),
    )
    outcome = replayed(instance, batch(0, {1: 5}), batch(15, {0: 60}), batch(85, {2: 5, 3: 5}))
    assert outcome.violations == ()
    assert outcome.attained.tolist() == [False, True, False, False, False]
    assert outcome.finished.tolist() == [True, True, True, False, False]
    assert outcome.counted.tolist() == [True, True, False, True, True]
    assert outcome.value == 3.0
    assert outcome.num_attained == 1
    assert outcome.stages[4] == ()
    assert outcome.stages[3][0].first_token_s == 85 + 20


def test_empty_schedule():
    outcome = replayed(plain_instance(request("a", 0.0, *THREE)))
    assert (outcome.value, outcome.legal, outcome.busy_s, outcome.stages) == (0.0, True, 0.0, ((),))


def test_tolerance_is_for_rounding_only():
    assert replayed(plain_instance(request("a", 0.0, Stage(5, 1, "main"))), batch(85 + 5e-8, {0: 5})).attained[0]
    assert not replayed(plain_instance(request("a", 0.0, Stage(5, 1, "main"))), batch(85 + 1e-6, {0: 5})).attained[0]
