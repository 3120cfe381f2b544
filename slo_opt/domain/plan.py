"""From a snapshot and an engine to the integers of one admission plan.

The plan is fluid. A batch lasts as long as the tightest tier present allows, so on roofline piece ``l`` the share of
engine time left for tokens is ``1 - (b_l + d_l * (max s - 1) + c0) / period``; a decode takes
``(k_l * s + c_dec * context + r) / period`` of it, with the period of its own tier; a prefill takes
``k_l * p + c_pf * Q`` seconds once. Decodes run at the pace of their tier: a candidate's from its deadline on.

Conservative choices, so that a plan feasible in integers is feasible in reals: times to a deadline and shares left are
rounded down, loads, works and departures up; a context counts as long as it is at the end of the stretch of time it is
counted in (for a candidate: at the end of the plan, or of its output if that is sooner).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.admission import AdmissionProblem, IntArray
from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.domain.speculation import tokens_per_step

MAX_PLAN_S = 3600.0  # later deadlines count as this: engine time in ps then stays far from the end of int64
_NEVER_US = 1 << 62
_MAX_WORK_PS = 10**17  # more than MAX_PLAN_S can supply
_MAX_SHARE_PPM = 10**8
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Tiers:
    """TPOTs present, by ascending effective period."""

    tpot_s: tuple[float, ...]
    drafts: FloatArray
    period_s: FloatArray
    index: dict[float, int]


def admission_problem(
    snapshot: AdmissionSnapshot,
    engine: EngineModel,
    *,
    kv_blocks: int | None = None,
    memory: Literal["peak", "growth"] = "peak",
    draft_lengths: Mapping[float, int] | None = None,
    acceptance: float = 0.0,
    horizon_s: float = 1.0,
    max_batch_s: float | None = None,
    value_scale: int | None = None,
) -> AdmissionProblem:
    """State the admission plan of a snapshot in integers.

    Parameters
    ----------
    snapshot : AdmissionSnapshot
        Running decodes and candidates.
    engine : EngineModel
        Batch time and KV blocks.
    kv_blocks : int or None
        Capacity of the KV cache; None for the engine's own.
    memory : {"peak", "growth"}
        Running decodes hold the blocks of their last token throughout, or grow with each token and release at their
        departure. Candidates reserve prompt and output in both cases.
    draft_lengths : mapping of float to int, or None
        Tokens that a decode schedules a step, by TPOT in seconds; 1 (also for TPOTs not named) is plain decoding. See
        `slo_opt.domain.speculation.best_draft_lengths`.
    acceptance : float
        Chance in [0, 1) that a drafted token is accepted.
    horizon_s : float
        Seconds after the last deadline for which decodes must be sustainable.
    max_batch_s : float or None
        No batch is longer, whatever the tier. None: the time of a full batch of `max_num_batched_tokens`.
    value_scale : int or None
        Values are multiplied by this and rounded (to at least 1). None: 1 if all values are whole, else 1,000.

    Returns
    -------
    AdmissionProblem
        Candidates by (deadline, id).

    Raises
    ------
    InvalidInputError
        A value, length, TPOT or horizon that means nothing, or an id given twice.

    Notes
    -----
    With no tier present batches last `max_batch_s`. Without a known remaining length a running decode never departs.
    `EngineModel.max_num_seqs` is not part of the plan.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4.
    """
    _validate(snapshot, horizon_s, memory, max_batch_s)
    tiers = _tiers(snapshot, draft_lengths or {}, acceptance)
    candidates = sorted(snapshot.candidates, key=lambda candidate: (candidate.due_s, candidate.id))
    due_s = np.array([c.due_s for c in candidates], dtype=np.float64) - snapshot.now_s
    deadline_us = np.floor(np.clip(due_s, 0.0, MAX_PLAN_S) * 1e6 + 1e-4).astype(np.int64)
    last_us = int(deadline_us[-1]) if candidates else 0
    end_us = last_us + max(1, int(np.ceil(horizon_s * 1e6)))
    bounds_us = np.concatenate(([0], deadline_us, [end_us])).astype(np.int64)

    running = _Running.of(snapshot.decoding, engine, tiers, end_us)
    stretches = _Stretches.of(bounds_us, running.departure_us)
    longest_s = engine.batch_time_s(engine.max_num_batched_tokens) if max_batch_s is None else max_batch_s
    share_ppm = _share_ppm(stretches, running, engine, tiers, longest_s)
    supply_ps = np.add.reduceat(share_ppm * stretches.length_us[None, :, None], stretches.first, axis=1)
    headroom_ppm = np.minimum.reduceat(share_ppm, stretches.first, axis=1)

    capacity = engine.kv_blocks if kv_blocks is None else kv_blocks
    held = running.peak_blocks(engine, stretches) if memory == "peak" else running.grown_blocks(engine, stretches)
    free_blocks = capacity - np.maximum.reduceat(held, stretches.first)
    work_ps, load_ppm = _candidate_costs(candidates, deadline_us, end_us, engine, tiers)
    return AdmissionProblem(
        deadline_us=deadline_us,
        tier=np.array([tiers.index[c.tpot_s] for c in candidates], dtype=np.int64),
        work_ps=work_ps,
        load_ppm=load_ppm,
        blocks=np.array([engine.kv_blocks_for(_peak_tokens(c)) for c in candidates], dtype=np.int64),
        value=_values(candidates, value_scale),
        mandatory=np.array([c.mandatory for c in candidates], dtype=np.bool_),
        length_us=np.diff(bounds_us),
        supply_ps=supply_ps,
        headroom_ppm=headroom_ppm,
        free_blocks=free_blocks.astype(np.int64),
        ids=tuple(c.id for c in candidates),
    )


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Time of the plan cut at deadlines and departures, so that the set of running decodes is constant on each."""

    start_us: IntArray
    end_us: IntArray
    first: NDArray[np.intp]  # index of the first stretch of each interval

    @property
    def length_us(self) -> IntArray:
        return self.end_us - self.start_us

    @classmethod
    def of(cls, bounds_us: IntArray, departure_us: IntArray) -> "_Stretches":
        inner = np.unique(departure_us)
        inner = inner[(inner > bounds_us[0]) & (inner < bounds_us[-1]) & ~np.isin(inner, bounds_us)]
        starts = np.concatenate((bounds_us[:-1], inner))
        interval = np.concatenate((np.arange(len(bounds_us) - 1), np.searchsorted(bounds_us, inner) - 1))
        order = np.lexsort((starts, interval))
        starts, interval = starts[order], interval[order]
        ends = np.append(starts[1:], bounds_us[-1])
        return cls(starts, ends, np.searchsorted(interval, np.arange(len(bounds_us) - 1)))


@dataclass(frozen=True, slots=True)
class _Running:
    """Running decodes as arrays, by departure: share of engine time ``fixed[l] + growth * seconds``."""

    departure_us: IntArray
    tpot_s: FloatArray
    context: FloatArray
    last_context: FloatArray
    tier: IntArray
    fixed: FloatArray
    growth: FloatArray

    @classmethod
    def of(cls, decoding: tuple[Decoding, ...], engine: EngineModel, tiers: _Tiers, end_us: int) -> "_Running":
        tpot_s = np.array([d.tpot_s for d in decoding], dtype=np.float64)
        context = np.array([d.context_tokens for d in decoding], dtype=np.float64)
        known = np.array([d.remaining_tokens is not None for d in decoding], dtype=np.bool_)
        remaining = np.array([d.remaining_tokens or 0 for d in decoding], dtype=np.float64)
        in_plan = np.ceil(end_us / 1e6 / tpot_s)
        departs_us = np.ceil(np.minimum(remaining * tpot_s, 2 * MAX_PLAN_S) * 1e6 - 1e-4).astype(np.int64)
        departure_us = np.where(known & (remaining <= in_plan), departs_us, _NEVER_US)
        last_context = context + np.where(known, remaining, in_plan)
        tier = np.array([tiers.index[d.tpot_s] for d in decoding], dtype=np.int64)
        period = tiers.period_s[tier]
        step_s = engine.decode_context_s * context + engine.request_s
        per_token_s = np.array([piece.per_token_s for piece in engine.pieces])
        fixed = (per_token_s[:, None] * tiers.drafts[tier] + step_s) / period
        growth = engine.decode_context_s / tpot_s / period
        order = np.argsort(departure_us, kind="stable")
        return cls(
            departure_us[order],
            tpot_s[order],
            context[order],
            last_context[order],
            tier[order],
            fixed[:, order],
            growth[order],
        )

    def first_alive(self, stretches: _Stretches) -> NDArray[np.intp]:
        """Index of the first decode that has not departed, by stretch; all later ones have not either."""
        return np.searchsorted(self.departure_us, stretches.start_us, side="right")

    def peak_blocks(self, engine: EngineModel, stretches: _Stretches) -> FloatArray:
        """Blocks of the last tokens, held throughout."""
        peak = np.ceil(self.last_context / engine.block_size_tokens).sum()
        return np.full(len(stretches.start_us), float(peak))

    def grown_blocks(self, engine: EngineModel, stretches: _Stretches) -> FloatArray:
        """Blocks held at the end of each stretch by the decodes that have not departed."""
        grown = self.context + (stretches.end_us / 1e6)[:, None] / self.tpot_s
        blocks = np.ceil(np.minimum(grown, self.last_context) / engine.block_size_tokens)
        alive = np.arange(len(self.context)) >= self.first_alive(stretches)[:, None]
        held: FloatArray = np.where(alive, blocks, 0.0).sum(axis=1)
        return held


def _share_ppm(
    stretches: _Stretches, running: _Running, engine: EngineModel, tiers: _Tiers, longest_s: float
) -> IntArray:
    """Share of engine time left, by piece, stretch and tightest accepted tier: ``(L, stretches, K + 1)``."""
    period_s = np.minimum(np.append(tiers.period_s, longest_s), longest_s)
    draft_steps = max(tiers.drafts.max(initial=1.0) - 1.0, 0.0)
    overhead_s = np.array([p.base_s + p.per_draft_step_s * draft_steps + engine.host_s for p in engine.pieces])

    alive = running.first_alive(stretches)
    zeros = np.zeros((len(engine.pieces), 1))
    fixed = np.concatenate((np.cumsum(running.fixed[:, ::-1], axis=1)[:, ::-1], zeros), axis=1)
    growth = np.append(np.cumsum(running.growth[::-1])[::-1], 0.0)
    load = fixed[:, alive] + growth[alive] * (stretches.end_us / 1e6)
    none = len(tiers.tpot_s)
    tightest_running = np.append(np.minimum.accumulate(running.tier[::-1])[::-1], none)[alive]
    tightest = np.minimum(tightest_running[:, None], np.arange(none + 1))
    share = 1.0 - overhead_s[:, None, None] / period_s[tightest] - load[:, :, None]
    ppm: IntArray = np.floor(np.maximum(share * 1e6, -_MAX_SHARE_PPM)).astype(np.int64)
    return ppm


def _candidate_costs(
    candidates: list[Candidate], deadline_us: IntArray, end_us: int, engine: EngineModel, tiers: _Tiers
) -> tuple[IntArray, IntArray]:
    """Prefill work in ps and decode load in ppm, each ``(L, N)``."""
    prompt = np.array([c.prefill_tokens for c in candidates], dtype=np.float64)
    pairs = np.array([prefill_pairs(c.prefill_tokens, c.past_tokens) for c in candidates], dtype=np.float64)
    start = np.array([c.past_tokens + c.prefill_tokens for c in candidates], dtype=np.float64)
    output = np.array([c.output_tokens for c in candidates], dtype=np.float64)
    tpot_s = np.array([c.tpot_s for c in candidates], dtype=np.float64)
    tier = np.array([tiers.index[c.tpot_s] for c in candidates], dtype=np.int64)
    context = start + np.minimum(output, np.ceil((end_us - deadline_us) / 1e6 / tpot_s))
    per_token_s = np.array([piece.per_token_s for piece in engine.pieces])[:, None]
    work_s = per_token_s * prompt + engine.prefill_pair_s * pairs
    step_s = per_token_s * tiers.drafts[tier] + engine.decode_context_s * context + engine.request_s
    work_ps = np.ceil(np.minimum(work_s * 1e12, _MAX_WORK_PS)).astype(np.int64)
    load_ppm = np.ceil(np.minimum(step_s / tiers.period_s[tier] * 1e6, _MAX_SHARE_PPM)).astype(np.int64)
    return work_ps, load_ppm


def _tiers(snapshot: AdmissionSnapshot, draft_lengths: Mapping[float, int], acceptance: float) -> _Tiers:
    present = {d.tpot_s for d in snapshot.decoding} | {c.tpot_s for c in snapshot.candidates}
    period = {tpot_s: tpot_s * tokens_per_step(draft_lengths.get(tpot_s, 1), acceptance) for tpot_s in present}
    ordered = tuple(sorted(present, key=lambda tpot_s: (period[tpot_s], tpot_s)))
    return _Tiers(
        tpot_s=ordered,
        drafts=np.array([draft_lengths.get(tpot_s, 1) for tpot_s in ordered], dtype=np.float64),
        period_s=np.array([period[tpot_s] for tpot_s in ordered], dtype=np.float64),
        index={tpot_s: k for k, tpot_s in enumerate(ordered)},
    )


def _values(candidates: list[Candidate], value_scale: int | None) -> IntArray:
    values = np.array([c.value for c in candidates], dtype=np.float64)
    if value_scale is None:
        value_scale = 1 if np.all(values == np.floor(values)) else 1000
    scaled: IntArray = np.maximum(np.rint(values * value_scale), 1).astype(np.int64)
    return scaled


def _peak_tokens(candidate: Candidate) -> int:
    return candidate.past_tokens + candidate.prefill_tokens + candidate.output_tokens


def _validate(snapshot: AdmissionSnapshot, horizon_s: float, memory: str, max_batch_s: float | None) -> None:
    if max_batch_s is not None and not 0 < max_batch_s <= MAX_PLAN_S:
        raise InvalidInputError(f"max_batch_s is {max_batch_s}; expected seconds in (0, {MAX_PLAN_S:.0f}]")
    if memory not in ("peak", "growth"):
        raise InvalidInputError(f"memory is {memory!r}; expected 'peak' or 'growth'")
    if not 0 <= horizon_s <= MAX_PLAN_S:
        raise InvalidInputError(f"horizon_s is {horizon_s}; expected seconds in [0, {MAX_PLAN_S:.0f}]")
    ids = [c.id for c in snapshot.candidates] + [d.id for d in snapshot.decoding]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InvalidInputError(f"request {twice!r} occurs twice in the snapshot; give each its own id")
    tpots = {d.id: d.tpot_s for d in snapshot.decoding} | {c.id: c.tpot_s for c in snapshot.candidates}
    for name, tpot_s in tpots.items():
        if not 0 < tpot_s <= MAX_PLAN_S:
            raise InvalidInputError(f"request {name!r}: tpot_s is {tpot_s}; expected seconds in (0, {MAX_PLAN_S:.0f}]")
    for d in snapshot.decoding:
        if d.context_tokens < 0 or (d.remaining_tokens is not None and d.remaining_tokens < 0):
            raise InvalidInputError(f"request {d.id!r}: context and remaining tokens must not be negative")
    for c in snapshot.candidates:
        if c.prefill_tokens < 1 or c.past_tokens < 0 or c.output_tokens < 1:
            raise InvalidInputError(
                f"request {c.id!r}: {c.prefill_tokens} prompt, {c.past_tokens} past, {c.output_tokens} output tokens; "
                "expected at least 1, 0 and 1"
            )
        if not 0 < c.value <= 1e9:
            raise InvalidInputError(f"request {c.id!r}: value is {c.value}; leave worthless candidates out")
        if c.due_s != c.due_s:
            raise InvalidInputError(f"request {c.id!r}: due_s is not a number; give its first-token deadline")
