"""The integers of an admission plan against hand calculation, and against the plan in reals."""

import dataclasses
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece, prefill_pairs
from slo_opt.domain.engines import ENGINES
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.plan import MAX_PLAN_S, admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.domain.speculation import tokens_per_step
from slo_opt.traces.snapshots import SnapshotShape, random_snapshot

ENGINE = EngineModel(
    name="round figures",
    source="by hand",
    pieces=(RooflinePiece(1e-4, 0.02, 0.001), RooflinePiece(2e-4, 0.01, 0.002)),
    decode_context_s=1e-7,
    prefill_pair_s=1e-9,
    request_s=1e-5,
    host_s=0.004,
    block_size_tokens=10,
    kv_blocks=100,
    max_num_batched_tokens=1000,
)


def snapshot(*items: Decoding | Candidate, now_s: float = 0.0) -> AdmissionSnapshot:
    return AdmissionSnapshot(
        now_s,
        tuple(item for item in items if isinstance(item, Decoding)),
        tuple(item for item in items if isinstance(item, Candidate)),
    )


def test_shares_by_hand() -> None:
    """0.048 s batches; one running decode of 1,000 tokens that grows by 20 until 1 s later."""
    plan = admission_problem(
        snapshot(Decoding("d", 0.048, 1000), Candidate("c", 0.48, 0.096, 10)), ENGINE, horizon_s=0.96
    )
    assert plan.length_us.tolist() == [480_000, 960_000]
    # Piece 0: 1 - 0.024/0.048 = 0.5; the decode takes (1e-4 + 1e-7 * 1010 + 1e-5) / 0.048 = 0.00439583.
    assert plan.headroom_ppm[0, 0].tolist() == [495_604] * 3
    # Piece 1: 1 - 0.014/0.048 = 0.708333; less (2e-4 + 1.01e-4 + 1e-5) / 0.048 = 0.00647917.
    assert plan.headroom_ppm[1, 0].tolist() == [701_854] * 3
    assert plan.supply_ps[0, 0, 2] == 480_000 * 495_604
    # The second interval ends with 1,030 tokens of context: 0.5 - 0.0044375.
    assert plan.headroom_ppm[0, 1, 0] == 495_562


def test_candidate_costs_by_hand() -> None:
    plan = admission_problem(
        snapshot(Candidate("c", 1.0, 0.1, 100, past_tokens=50, output_tokens=5)), ENGINE, horizon_s=1.0
    )
    pairs = 100 * (50 + 50.5)
    assert plan.work_ps[:, 0].tolist() == [math.ceil(1e12 * (k * 100 + 1e-9 * pairs) - 1e-3) for k in (1e-4, 2e-4)]
    # (1e-4 + 1e-7 * 155 + 1e-5) / 0.1 and with 2e-4
    assert plan.load_ppm[:, 0].tolist() == [1255, 2255]
    assert plan.blocks.tolist() == [16]
    assert plan.free_blocks.tolist() == [100, 100]
    # Nothing decodes: batches of 1,000 tokens take max(0.12, 0.21) + 0.004 s.
    full_s = 0.214
    assert plan.headroom_ppm[0, 0].tolist() == [math.floor(1e6 * (1 - 0.024 / period)) for period in (0.1, full_s)]


def test_no_batch_is_longer_than_a_full_one() -> None:
    plan = admission_problem(snapshot(Candidate("c", 1.0, 10.0, 100)), ENGINE)
    assert plan.headroom_ppm[0, 0, 0] == plan.headroom_ppm[0, 0, 1]
    shorter = admission_problem(snapshot(Candidate("c", 1.0, 10.0, 100)), ENGINE, max_batch_s=0.048)
    assert shorter.headroom_ppm[0, 0].tolist() == [500_000, 500_000]


def test_a_departure_frees_time_and_memory() -> None:
    """10 tokens at 0.1 s: gone after 1 s of the first interval of 2 s."""
    held = snapshot(Decoding("d", 0.1, 95, 10), Candidate("c", 2.0, 0.2, 10))
    plan = admission_problem(held, ENGINE, memory="growth")
    assert plan.free_blocks.tolist() == [100 - 11, 100]
    with_it = math.floor(1e6 * (1 - 0.024 / 0.1 - (1e-4 + 1e-7 * 105 + 1e-5) / 0.1))
    after = [math.floor(1e6 * (1 - 0.024 / period)) for period in (0.1, 0.2, 0.214)]
    assert plan.headroom_ppm[0].tolist() == [[with_it] * 3, after]
    assert plan.supply_ps[0, 0].tolist() == [10**6 * (with_it + share) for share in after]
    assert admission_problem(held, ENGINE, memory="peak").free_blocks.tolist() == [100 - 11] * 2


def test_a_decode_of_unknown_length_grows_and_stays() -> None:
    held = snapshot(Decoding("d", 0.1, 100), Candidate("c", 2.0, 0.1, 10))
    assert admission_problem(held, ENGINE, memory="growth").free_blocks.tolist() == [88, 87]
    assert admission_problem(held, ENGINE, memory="peak").free_blocks.tolist() == [87, 87]


def test_speculation_lengthens_the_period() -> None:
    """Two tokens a step at 50 % acceptance: 1.5 tokens a step, batches of 0.072 s, one draft step each."""
    plan = admission_problem(snapshot(Candidate("c", 1.0, 0.048, 10)), ENGINE, draft_lengths={0.048: 2}, acceptance=0.5)
    assert plan.headroom_ppm[:, 0, 0].tolist() == [
        math.floor(1e6 * (1 - (0.020 + 0.001 + 0.004) / 0.072)),
        math.floor(1e6 * (1 - (0.010 + 0.002 + 0.004) / 0.072)),
    ]
    context = 10 + 1
    assert plan.load_ppm[0, 0] == math.ceil(1e6 * (2e-4 + 1e-7 * context + 1e-5) / 0.072)


def test_speculation_can_reorder_tiers() -> None:
    two = snapshot(Candidate("a", 1.0, 0.05, 10), Candidate("b", 1.0, 0.06, 10))
    assert admission_problem(two, ENGINE).tier.tolist() == [0, 1]
    assert admission_problem(two, ENGINE, draft_lengths={0.05: 3}, acceptance=0.8).tier.tolist() == [1, 0]


def test_clock_order_and_past_deadlines() -> None:
    plan = admission_problem(
        snapshot(
            Candidate("late", 4.0, 0.1, 10),
            Candidate("b", 6.5, 0.1, 10),
            Candidate("a", 6.5, 0.1, 10),
            Candidate("far", math.inf, 0.1, 10, mandatory=True),
            now_s=5.0,
        ),
        ENGINE,
    )
    assert plan.ids == ("late", "a", "b", "far")
    assert plan.deadline_us.tolist() == [0, 1_500_000, 1_500_000, MAX_PLAN_S * 1e6]
    assert plan.mandatory.tolist() == [False, False, False, True]
    assert plan.check([0, 3]) == f"compute: interval 0, piece 0: budget {-plan.work_ps[0, 0]} ps"


@pytest.mark.parametrize(
    ("values", "scale", "expected"),
    [
        ([1.0, 3.0], None, [1, 3]),
        ([0.5, 2.0], None, [500, 2000]),
        ([0.5, 2.0], 2, [1, 4]),
        ([1e-9, 1.5], None, [1, 1500]),
    ],
)
def test_values(values: list[float], scale: int | None, expected: list[int]) -> None:
    candidates = [Candidate(str(j), 1.0, 0.1, 10, value=value) for j, value in enumerate(values)]
    assert admission_problem(snapshot(*candidates), ENGINE, value_scale=scale).value.tolist() == expected


@pytest.mark.parametrize("running", [(), (Decoding("d", 0.1, 10, 5), Decoding("e", 0.2, 10))])
def test_no_candidates(running: tuple[Decoding, ...]) -> None:
    plan = admission_problem(AdmissionSnapshot(3.0, running, ()), ENGINE)
    assert plan.num_candidates == 0
    assert plan.check(()) is None


GOOD = Candidate("c", 1.0, 0.1, 10)


@pytest.mark.parametrize(
    ("items", "options", "phrase"),
    [
        ((GOOD, GOOD), {}, "'c' occurs twice"),
        ((GOOD, Decoding("c", 0.1, 5)), {}, "'c' occurs twice"),
        ((dataclasses.replace(GOOD, prefill_tokens=0),), {}, "0 prompt"),
        ((dataclasses.replace(GOOD, value=0.0),), {}, "value is 0.0"),
        ((dataclasses.replace(GOOD, value=math.nan),), {}, "value is nan"),
        ((dataclasses.replace(GOOD, due_s=math.nan),), {}, "due_s is not a number"),
        ((dataclasses.replace(GOOD, tpot_s=0.0),), {}, "tpot_s is 0.0"),
        ((dataclasses.replace(GOOD, tpot_s=math.nan),), {}, "tpot_s is nan"),
        ((Decoding("d", 0.1, -1),), {}, "must not be negative"),
        ((Decoding("d", 0.1, 1, -1),), {}, "must not be negative"),
        ((GOOD,), {"memory": "none"}, "memory is 'none'"),
        ((GOOD,), {"horizon_s": -1.0}, "horizon_s is -1.0"),
        ((GOOD,), {"max_batch_s": 0.0}, "max_batch_s is 0.0"),
        ((GOOD,), {"acceptance": 1.0}, "acceptance is 1.0"),
        ((GOOD,), {"draft_lengths": {0.1: 0}}, "draft length is 0"),
    ],
)
def test_bad_input(items: tuple[Decoding | Candidate, ...], options: dict[str, object], phrase: str) -> None:
    with pytest.raises(InvalidInputError, match=phrase):
        admission_problem(snapshot(*items), ENGINE, **options)  # type: ignore[arg-type]


def supply_in_reals(
    engine: EngineModel, piece: RooflinePiece, tiers: dict[float, Fraction], drafts: dict[float, int],
    state: AdmissionSnapshot, accepted_tier: Fraction | None, start: Fraction, end: Fraction,
) -> tuple[Fraction, Fraction]:  # fmt: skip
    """Integral and minimum of the share of engine time left, with contexts that grow token by token in fluid form."""
    exact = Fraction
    steps = max([drafts.get(t, 1) for t in tiers] or [1]) - 1
    overhead = exact(piece.base_s) + exact(piece.per_draft_step_s) * steps + exact(engine.host_s)
    gone = {d.id: exact(d.remaining_tokens) * exact(d.tpot_s) for d in state.decoding if d.remaining_tokens is not None}
    cuts = sorted({start, end, *(t for t in gone.values() if start < t < end)})
    total, least = exact(0), None
    for a, b in pairwise(cuts) if start < end else [(start, end)]:
        alive = [d for d in state.decoding if d.id not in gone or gone[d.id] > a]
        periods = [tiers[d.tpot_s] for d in alive] + ([accepted_tier] if accepted_tier is not None else [])
        full = exact(engine.batch_time_s(engine.max_num_batched_tokens))
        ends = []
        for moment in (a, b):
            left = 1 - overhead / min([*periods, full])
            for d in alive:
                context = exact(d.context_tokens) + moment / exact(d.tpot_s)
                step = exact(piece.per_token_s) * drafts.get(d.tpot_s, 1) + exact(engine.decode_context_s) * context
                left -= (step + exact(engine.request_s)) / tiers[d.tpot_s]
            ends.append(left)
        total += (b - a) * (ends[0] + ends[1]) / 2
        least = min(ends) if least is None else min(least, *ends)
    assert least is not None
    return total, least


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), spec=st.booleans(), name=st.sampled_from(sorted(ENGINES)))
def test_feasible_in_integers_is_feasible_in_reals(seed: int, spec: bool, name: str) -> None:
    """Loads and works are rounded up, supplies down: checked with fractions, statement by statement."""
    rng, engine = np.random.default_rng(seed), ENGINES[name]
    if spec:
        pieces = tuple(dataclasses.replace(piece, per_draft_step_s=0.0007) for piece in engine.pieces)
        engine = dataclasses.replace(engine, pieces=pieces)
    state = random_snapshot(rng, engine, SnapshotShape(8, int(rng.integers(0, 12)), int(rng.integers(1, 5))))
    drafts = {0.05: 3, 0.1: 2} if spec else {}
    acceptance = 0.6 if spec else 0.0
    plan = admission_problem(state, engine, draft_lengths=drafts, acceptance=acceptance)
    present = {item.tpot_s for item in (*state.decoding, *state.candidates)}
    periods = {t: Fraction(t) * Fraction(tokens_per_step(drafts.get(t, 1), acceptance)) for t in present}
    order = sorted(periods, key=lambda t: periods[t])
    candidates = sorted(state.candidates, key=lambda c: (c.due_s, c.id))
    due = [Fraction(max(c.due_s, 0.0)) for c in candidates]
    cut = [Fraction(0), *due, due[-1] + 1]
    for index, piece in enumerate(engine.pieces):
        for j, c in enumerate(candidates):
            pairs = Fraction(prefill_pairs(c.prefill_tokens, c.past_tokens))
            work = Fraction(piece.per_token_s) * c.prefill_tokens + Fraction(engine.prefill_pair_s) * pairs
            assert plan.work_ps[index, j] * (1 + 1e-12) >= work * 10**12
            context = c.past_tokens + c.prefill_tokens
            step = Fraction(piece.per_token_s) * drafts.get(c.tpot_s, 1) + Fraction(engine.request_s)
            load = (step + Fraction(engine.decode_context_s) * context) / periods[c.tpot_s]
            assert plan.load_ppm[index, j] >= load * 10**6 - Fraction(1, 10**6)
        for i in range(len(candidates) + 1):
            for k in range(len(order) + 1):
                tier = periods[order[k]] if k < len(order) else None
                start = Fraction(int(plan.deadline_us[i - 1]), 10**6) if i else Fraction(0)
                end = start + Fraction(int(plan.length_us[i]), 10**6)
                assert abs(end - cut[i + 1]) < Fraction(2, 10**6)
                total, least = supply_in_reals(engine, piece, periods, drafts, state, tier, start, end)
                assert plan.supply_ps[index, i, k] <= total * 10**12 + 1
                assert plan.headroom_ppm[index, i, k] <= least * 10**6 + Fraction(1, 10**6)
                assert plan.headroom_ppm[index, i, k] >= least * 10**6 - 2000  # and not far below
