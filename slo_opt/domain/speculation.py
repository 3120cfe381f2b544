"""Speculative decoding in expectation: tokens a step, and the draft lengths that leave the most tokens to prefills."""

from collections.abc import Sequence
from dataclasses import dataclass

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError


def tokens_per_step(length: int, acceptance: float) -> float:
    """Expected tokens of one step that schedules `length` tokens: ``Acc(s) = (1 - α^s) / (1 - α)``.

    Parameters
    ----------
    length : int
        ``s >= 1``: the next token and ``s - 1`` drafted ones; 1 is plain decoding.
    acceptance : float
        ``α`` in [0, 1): chance that a drafted token is accepted, each independent of the others.

    Raises
    ------
    InvalidInputError
        The length is less than 1 or the acceptance is not in [0, 1).
    """
    if length < 1 or length != int(length):
        raise InvalidInputError(f"draft length is {length}; expected an integer >= 1 (1 is plain decoding)")
    if not 0 <= acceptance < 1:
        raise InvalidInputError(f"acceptance is {acceptance}; expected a probability in [0, 1)")
    return (1.0 - acceptance**length) / (1.0 - acceptance)


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Draft lengths and what they leave.

    Parameters
    ----------
    lengths : tuple of int
        ``s_l``, by tier.
    batch_s : float
        ``T``: time between batches.
    prefill_tokens : int
        Tokens of a batch left to prefills; negative where the decodes alone are too many.
    """

    lengths: tuple[int, ...]
    batch_s: float
    prefill_tokens: int

    @property
    def prefill_rate(self) -> float:
        """Prefill tokens a second."""
        return self.prefill_tokens / self.batch_s


def draft_plan(
    engine: EngineModel, tiers: Sequence[float], counts: Sequence[int], lengths: Sequence[int], acceptance: float
) -> DraftPlan:
    """What given lengths leave: ``T = min_l τ_l·Acc(s_l)`` over tiers with decodes, budget ``time2bs(T) - Σ n_l·s_l``.

    Parameters
    ----------
    engine : EngineModel
        Batch times.
    tiers : sequence of float
        ``τ_l``, TPOT in seconds.
    counts : sequence of int
        ``n_l``, decodes by tier; a tier with none does not limit the batch.
    lengths : sequence of int
        ``s_l``.
    acceptance : float
        ``α``.
    """
    present = [k for k, count in enumerate(counts) if count > 0]
    batch_s = min(tiers[k] * tokens_per_step(lengths[k], acceptance) for k in present)
    fit = engine.max_tokens_within(
        batch_s,
        num_requests=sum(counts),
        draft_steps=max(lengths[k] for k in present) - 1,
    )
    return DraftPlan(tuple(lengths), batch_s, fit - sum(counts[k] * lengths[k] for k in present))


def best_draft_lengths(
    engine: EngineModel, tiers: Sequence[float], counts: Sequence[int], acceptance: float, max_draft: int
) -> tuple[int, ...]:
    """Draft lengths that leave prefills the most tokens a second.

    One tier is the bottleneck, whose period is the time between batches; it and its length are enumerated. Every other
    tier takes the shortest length that keeps its period at least as long: fewer tokens, fewer draft steps.

    Parameters
    ----------
    engine, tiers, counts, acceptance
        As for `draft_plan`.
    max_draft : int
        Longest length tried, >= 1.

    Returns
    -------
    tuple of int
        ``s_l`` by tier. A tier without decodes gets the shortest length with which one could join without shortening
        the batch, or `max_draft` if there is none; all are 1 where nothing decodes.

    Raises
    ------
    InvalidInputError
        The lists differ in length, or a parameter is out of range.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4 (SLO-adaptive speculation).
    """
    if len(tiers) != len(counts):
        raise InvalidInputError(f"{len(tiers)} tiers but {len(counts)} counts; give one count a tier")
    if max_draft < 1 or any(count < 0 for count in counts) or min(tiers, default=1.0) <= 0:
        raise InvalidInputError("expected max_draft >= 1, counts >= 0 and TPOTs > 0")
    accepted = [tokens_per_step(s, acceptance) for s in range(1, max_draft + 1)]
    best: DraftPlan | None = None
    for bottleneck, count in enumerate(counts):
        if not count:
            continue
        for length in range(1, max_draft + 1):
            batch_s = tiers[bottleneck] * accepted[length - 1]
            lengths = [_shortest(tpot_s, batch_s, accepted) for tpot_s in tiers]
            lengths[bottleneck] = length
            if any(counts[k] and tiers[k] * accepted[s - 1] < batch_s for k, s in enumerate(lengths)):
                continue
            plan = draft_plan(engine, tiers, counts, lengths, acceptance)
            if best is None or plan.prefill_rate > best.prefill_rate:
                best = plan
    return best.lengths if best is not None else (1,) * len(tiers)


def _shortest(tpot_s: float, batch_s: float, accepted: Sequence[float]) -> int:
    """Shortest length whose period is at least `batch_s`, or the longest there is."""
    for length, tokens in enumerate(accepted, start=1):
        if tpot_s * tokens >= batch_s:
            return length
    return len(accepted)
