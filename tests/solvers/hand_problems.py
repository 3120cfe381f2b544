"""Small admission problems whose optimum is found by hand. Full engine time is 1,000,000 ppm: 10**6 ps a µs."""

from dataclasses import dataclass

import numpy as np

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.plan import admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding

FULL = 1_000_000
MS = 10**9  # ps


def problem(
    deadline_us: list[int],
    work_ps: list[int],
    *,
    value: list[int] | None = None,
    mandatory: list[int] | None = None,
    tier: list[int] | None = None,
    load_ppm: list[int] | None = None,
    blocks: list[int] | None = None,
    share_ppm: list[int] | list[list[int]] | None = None,
    free_blocks: list[int] | None = None,
    horizon_us: int = 1000,
) -> AdmissionProblem:
    """One roofline piece; `share_ppm` by tightest tier, or by interval and tightest tier."""
    count = len(deadline_us)
    share = np.array(share_ppm if share_ppm is not None else [FULL, FULL], dtype=np.int64)
    share = np.broadcast_to(share, (count + 1, share.shape[-1]))
    ends = np.array([0, *deadline_us, (deadline_us[-1] if count else 0) + horizon_us], dtype=np.int64)
    length_us = np.diff(ends)
    ones, zeros = np.ones(count, dtype=np.int64), np.zeros(count, dtype=np.int64)

    def column(given: list[int] | None, default: np.ndarray) -> np.ndarray:
        return default if given is None else np.array(given, dtype=np.int64)

    return AdmissionProblem(
        deadline_us=np.array(deadline_us, dtype=np.int64),
        tier=column(tier, zeros),
        work_ps=np.array([work_ps], dtype=np.int64).reshape(1, count),
        load_ppm=column(load_ppm, zeros).reshape(1, count),
        blocks=column(blocks, zeros),
        value=column(value, ones),
        mandatory=np.isin(np.arange(count), mandatory or []),
        length_us=length_us,
        supply_ps=(length_us[:, None] * share)[None],
        headroom_ppm=share[None].copy(),
        free_blocks=np.full(count + 1, 10, dtype=np.int64) if free_blocks is None else np.array(free_blocks),
        ids=tuple(f"r{j}" for j in range(count)),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A problem and its best set; None where it is infeasible. The best set is the only one of its value."""

    name: str
    problem: AdmissionProblem
    best: tuple[int, ...] | None


ENGINE = EngineModel(
    name="by hand",
    source="round figures",
    pieces=(RooflinePiece(1e-4, 0.03),),
    block_size_tokens=10,
    kv_blocks=20,
)
_SPECULATING = AdmissionSnapshot(0.0, (Decoding("d", 0.05, 0),), (Candidate("c", 1.0, 0.05, 5000),))
_GROWING = AdmissionSnapshot(0.0, (Decoding("d", 0.05, 100, 60),), (Candidate("c", 1.0, 0.05, 40, output_tokens=5),))
_FOUR = AdmissionSnapshot(
    0.0,
    (),
    (
        Candidate("2", 0.171823, 0.1, 577),
        Candidate("3", 0.225135, 0.1, 2204),
        Candidate("1", 0.282499, 0.1, 1022),
        Candidate("0", 0.456402, 0.1, 2319),
    ),
)
_OPT = EngineModel("OPT-6.7B", "papers", (RooflinePiece(6.878e-5, 2.480e-2), RooflinePiece(7.523e-5, 3.033e-3)))
_PAIRS = EngineModel("growth", "round", (RooflinePiece(1e-4, 0.0),), block_size_tokens=10, kv_blocks=20)

# Three prompts due at 1 ms: 0.6 ms worth 3, 0.5 ms worth 2, 0.4 ms worth 2.
_VALUES = {"deadline_us": [1000] * 3, "value": [3, 2, 2]}
_LONG = 600 * MS // 1000

CASES = (
    Case("no candidates", problem([], []), ()),
    Case("one that fits to the last ps", problem([1000], [MS]), (0,)),
    Case("one that is a ps too long", problem([1000], [MS + 1]), ()),
    Case("values, exact fit", problem(work_ps=[_LONG, 500_000_000, 400_000_000], **_VALUES), (0, 2)),
    Case("values, a ps too long", problem(work_ps=[_LONG + 1, 500_000_000, 400_000_000], **_VALUES), (1, 2)),
    Case("mandatory", problem(work_ps=[_LONG, 500_000_000, 400_000_000], mandatory=[1], **_VALUES), (1, 2)),
    Case(
        "mandatory ones that exclude each other",
        problem(work_ps=[_LONG, 500_000_000, 400_000_000], mandatory=[0, 1], **_VALUES),
        None,
    ),
    Case("mandatory all", problem([10, 20], [10_000_000, 10_000_000], mandatory=[0, 1]), (0, 1)),
    Case("past due", problem([0, 1000], [1, MS]), (1,)),
    Case("past due without work", problem([0, 1000], [0, MS]), (0, 1)),
    Case("past due and mandatory", problem([0, 1000], [1, MS], mandatory=[0]), None),
    # 1 ms of work each, due at 1, 2 and 2 ms: two fit.
    Case("deadline order", problem([1000, 2000, 2000], [MS, MS, MS], value=[1, 2, 4]), (1, 2)),
    # A tie of deadlines with tiers: either order of the two names the same plan.
    Case("tie", problem([1000, 1000], [MS // 2, MS // 2], tier=[1, 0], share_ppm=[500_000, FULL, FULL]), (0, 1)),
    # Tier 0 leaves 40 %, tier 1 80 %: after the tight one the interval of 2 ms supplies 0.8 ms, not 1.6 ms.
    Case(
        "tighter tier",
        problem([1000, 3000], [MS // 2, 3 * MS // 2], tier=[0, 1], value=[1, 2], share_ppm=[400_000, 800_000, FULL]),
        (1,),
    ),
    Case(
        "same tier",
        problem([1000, 3000], [MS // 2, 3 * MS // 2], tier=[1, 1], share_ppm=[400_000, 800_000, FULL]),
        (0, 1),
    ),
    # Decode of the first takes 30 % of the 2 ms: 0.5 + 2 * (1 - 0.3) = 1.9 ms are left for the second.
    Case("decode load, exact fit", problem([1000, 3000], [MS // 2, 1_900_000_000], load_ppm=[300_000, 0]), (0, 1)),
    Case(
        "decode load, a ps too long",
        problem([1000, 3000], [MS // 2, 1_900_000_001], load_ppm=[300_000, 0], value=[1, 2]),
        (1,),
    ),
    Case("sustainable to the ppm", problem([10, 10], [0, 0], load_ppm=[600_000, 400_000]), (0, 1)),
    Case("a ppm too much", problem([10, 10], [0, 0], load_ppm=[600_000, 400_001], value=[1, 2]), (1,)),
    # The running decode leaves at 1 ms: until then it takes all of the engine.
    Case(
        "departure",
        problem([1000, 2000], [1, MS], share_ppm=[[0, 0], [FULL, FULL], [FULL, FULL]], load_ppm=[1, 0]),
        (1,),
    ),
    # Until 1 ms the running decodes are 0.5 ms behind; what is accepted later has to pay that back.
    Case("debt paid back", problem([1000, 2000], [0, MS // 2], share_ppm=[[-FULL // 2] * 2, *[[FULL] * 2] * 2]), (1,)),
    Case(
        "debt a ps too large",
        problem([1000, 2000], [0, MS // 2 + 1], share_ppm=[[-FULL // 2] * 2, *[[FULL] * 2] * 2]),
        (),
    ),
    # Overload that starts after the acceptance forbids it, though its prefill would be done in time.
    Case("overload to come", problem([1000, 2000], [1, 1], share_ppm=[*[[FULL] * 2] * 2, [-1, -1]]), ()),
    Case("memory", problem([10, 20, 30], [0, 0, 0], blocks=[6, 5, 5], value=[3, 2, 2]), (1, 2)),
    Case("memory, mandatory", problem([10, 20, 30], [0, 0, 0], blocks=[6, 5, 5], mandatory=[0, 1]), None),
    # 3 blocks are free until 20 µs: the first must leave room there, the last two find 10.
    Case(
        "memory released",
        problem([10, 20, 30], [0, 0, 0], blocks=[4, 3, 7], value=[9, 2, 2], free_blocks=[3, 3, 10, 10]),
        (1, 2),
    ),
    Case("no memory now", problem([10, 20], [0, 0], blocks=[0, 1], free_blocks=[-1, 1, 1]), (1,)),
    Case("no memory later", problem([10, 20], [0, 0], blocks=[0, 0], free_blocks=[5, 5, -1]), ()),
    Case("large values", problem([1000, 1000], [MS, MS], value=[999_999_999, 1_000_000_000]), (1,)),
    # 1 - 0.03 / 0.05 leaves 0.4 s of the second, less than the prompt's 0.5 s ...
    Case("plain decoding", admission_problem(_SPECULATING, ENGINE, kv_blocks=1000), ()),
    # ... and batches of 0.095 s, two tokens at 90 % acceptance, leave 0.68 s.
    Case(
        "speculation",
        admission_problem(_SPECULATING, ENGINE, kv_blocks=1000, draft_lengths={0.05: 2}, acceptance=0.9),
        (0,),
    ),
    # The running decode holds 16 of 20 blocks at its end, the candidate needs 5; within the plan it reaches 13.
    Case("peak memory", admission_problem(_GROWING, _PAIRS, memory="peak", horizon_s=0.5), ()),
    Case("growing memory", admission_problem(_GROWING, _PAIRS, memory="growth", horizon_s=0.5), (0,)),
    # The published planner accepts two of these; three are possible.
    Case("four requests", admission_problem(_FOUR, _OPT, max_batch_s=0.1), (0, 2, 3)),
)


def knife_edge_problem(seed: int) -> AdmissionProblem:
    """Round supplies and works, each off by -1, 0 or 1 ps, and shares off by a ppm: rounding would decide many sets."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 8))
    scale = int(rng.choice([1, 100, 100_000]))  # intervals of 0.1 ms, 10 ms, 10 s
    deadline_us = np.cumsum(rng.integers(0, 3, count)) * 100 * scale
    work_ps = rng.integers(0, 4, count) * 100 * scale * FULL // 2 + rng.integers(-1, 2, count)
    share_ppm = np.array([800_000, 900_000, FULL]) + rng.integers(-1, 2, (count + 1, 1))
    return problem(
        deadline_us.tolist(),
        np.maximum(work_ps, 0).tolist(),
        value=rng.integers(1, 4, count).tolist(),
        tier=rng.integers(0, 2, count).tolist(),
        load_ppm=(rng.integers(0, 3, count) * 100_000 + rng.integers(0, 2, count)).tolist(),
        blocks=rng.integers(0, 6, count).tolist(),
        share_ppm=share_ppm.tolist(),
    )
