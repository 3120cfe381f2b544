"""Draft lengths against brute force over all of them."""

from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.speculation import best_draft_lengths, draft_plan, tokens_per_step

# OPT-6.7B on an A100 with a drafting OPT-125M: coefficients quoted by SLOs-Serve (arXiv 2504.08784).
ENGINE = EngineModel(
    name="OPT-6.7B with draft",
    source="papers",
    pieces=(RooflinePiece(6.878e-5, 2.480e-2, 1.249e-6), RooflinePiece(7.523e-5, 3.033e-3, 3.465e-3)),
)


def test_tokens_per_step() -> None:
    assert tokens_per_step(1, 0.7) == pytest.approx(1.0)
    assert tokens_per_step(3, 0.5) == pytest.approx(1.75)
    assert tokens_per_step(4, 0.0) == 1.0


@settings(max_examples=150, deadline=None)
@given(
    tiers=st.lists(st.floats(0.03, 0.4), min_size=1, max_size=3),
    counts=st.lists(st.integers(0, 120), min_size=3, max_size=3),
    acceptance=st.floats(0.0, 0.95),
    max_draft=st.integers(1, 6),
)
def test_best_of_all_lengths(tiers: list[float], counts: list[int], acceptance: float, max_draft: int) -> None:
    counts = counts[: len(tiers)]
    assume(any(counts))
    chosen = best_draft_lengths(ENGINE, tiers, counts, acceptance, max_draft)
    every = product(range(1, max_draft + 1), repeat=len(tiers))
    best = max(draft_plan(ENGINE, tiers, counts, lengths, acceptance).prefill_rate for lengths in every)
    assert draft_plan(ENGINE, tiers, counts, chosen, acceptance).prefill_rate == pytest.approx(best, rel=1e-12)


def test_by_hand() -> None:
    """50 decodes at 40 ms: plain leaves 170 of 220 tokens a batch; two tokens at 80 % stretch it to 72 ms."""
    plain = draft_plan(ENGINE, [0.04], [50], [1], 0.8)
    assert (plain.batch_s, plain.prefill_tokens) == (0.04, 170)
    pair = draft_plan(ENGINE, [0.04], [50], [2], 0.8)
    assert pair.batch_s == pytest.approx(0.072)
    assert pair.prefill_tokens == 686 - 100
    assert best_draft_lengths(ENGINE, [0.04], [50], 0.8, 2) == (2,)


def test_drafts_that_are_never_accepted_are_not_made() -> None:
    assert best_draft_lengths(ENGINE, [0.05, 0.1], [5, 5], 0.0, 4) == (1, 1)


def test_nothing_decodes() -> None:
    assert best_draft_lengths(ENGINE, [0.05, 0.1], [0, 0], 0.8, 4) == (1, 1)


def test_an_empty_tier_can_join_without_shortening_the_batch() -> None:
    lengths = best_draft_lengths(ENGINE, [0.05, 0.1], [0, 30], 0.8, 6)
    batch_s = 0.1 * tokens_per_step(lengths[1], 0.8)
    assert lengths[0] == 6 or 0.05 * tokens_per_step(lengths[0], 0.8) >= batch_s


@pytest.mark.parametrize(
    ("tiers", "counts", "acceptance", "max_draft"),
    [([0.1], [1, 2], 0.5, 2), ([0.1], [1], 1.0, 2), ([0.1], [1], 0.5, 0), ([0.1], [-1], 0.5, 2), ([0.0], [1], 0.5, 2)],
)
def test_bad_input(tiers: list[float], counts: list[int], acceptance: float, max_draft: int) -> None:
    with pytest.raises(InvalidInputError):
        best_draft_lengths(ENGINE, tiers, counts, acceptance, max_draft)
