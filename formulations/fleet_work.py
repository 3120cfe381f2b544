"""A bound on fleets that needs no solver: the least engine time and KV memory that attained requests take, by window.

Coarse where requests crowd for less time than a window, but there at once; see formulations/README.md, least fleet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fleet_cuts import FleetCut
from slo_opt.formulations.sparse_model import FloatArray

_LEVELS = 9  # windows from the whole trace down to its 256th part


@dataclass(frozen=True, slots=True)
class _Needs:
    """What each request of one engine type takes at least, infinite where the type cannot attain it.

    Parameters
    ----------
    release_s, due_s : (N,) float arrays
        When all of its work is done.
    resources : tuple of (float, (N,) float array)
        What a second of one replica gives, and what each request takes of it.
    """

    release_s: FloatArray
    due_s: FloatArray
    resources: tuple[tuple[float, FloatArray], ...]


def _needs(instance: Instance) -> _Needs:
    """Engine seconds on each piece of the batch time, and seconds times KV blocks held."""
    engine = instance.engine
    prefills, decodes = attainable_work(instance)
    count = len(instance.requests)
    tokens_s = []
    for piece in engine.pieces:
        # Batches may overlap by the evaluator's tolerance; each has at least one token.
        base_s = piece.base_s + engine.host_s - TIME_TOLERANCE_S
        tokens_s.append(max(piece.per_token_s + min(base_s, 0.0), 0.0))
    context_s = min(engine.decode_context_s, min(tokens_s))  # or it is prefilled again
    least_batch_s = max(engine.batch_time_s(1) - TIME_TOLERANCE_S, 0.0)  # of the batch that yields a token
    release_s, due_s = np.full(count, np.inf), np.full(count, -np.inf)
    tokens, other_s, held = np.zeros(count), np.zeros(count), np.zeros(count)
    for prefill in prefills:
        i = prefill.request
        release_s[i], due_s[i] = min(release_s[i], prefill.release_s), max(due_s[i], prefill.due_s)
        tokens[i] += prefill.tokens
        other_s[i] += engine.prefill_pair_s * prefill.pairs + engine.request_s
    for decode in decodes:
        i, context = decode.request, float(decode.context_of(np.array(float(decode.steps))))
        due_s[i] = max(due_s[i], decode.last_due_s)
        tokens[i] += decode.steps
        other_s[i] += context_s * context + engine.request_s * decode.steps
        held[i] += context / engine.block_size_tokens * least_batch_s
    absent = ~np.isfinite(release_s)
    # KV first: types may differ in their number of pieces, and any of them may be set against any other.
    resources = [(float(engine.kv_blocks), held)] + [(1.0, token_s * tokens + other_s) for token_s in tokens_s]
    return _Needs(release_s, due_s, tuple((gives, np.where(absent, np.inf, takes)) for gives, takes in resources))


def work_cuts(instances: Sequence[Instance], needed: int, prices: Sequence[float]) -> tuple[FleetCut, ...]:
    """For each resource the cut of the window that asks for the dearest fleet, where any asks for one.

    Parameters
    ----------
    instances : sequence of Instance
        The same requests on each engine type.
    needed : int
        Requests that must be attained in all, at most those that some type can attain.
    prices : sequence of float
        Of one replica of each type; they only choose between windows.
    """
    needs = [_needs(instance) for instance in instances]
    release_s = np.min([need.release_s for need in needs], axis=0)
    due_s = np.max([need.due_s for need in needs], axis=0)
    servable = np.isfinite(release_s)
    begin_s, end_s = float(np.min(release_s)), float(np.max(due_s))
    found = []
    for resource in range(min(len(need.resources) for need in needs)):
        given = [need.resources[resource] for need in needs]
        best, most_asked = None, 0.0
        for level in range(_LEVELS if servable.any() else 0):
            length_s = (end_s - begin_s) / 2**level
            for start_s in np.arange(begin_s, end_s - 0.75 * length_s, length_s / 2):
                inside = servable & (release_s >= start_s) & (due_s <= start_s + length_s)
                outside = int(servable.sum()) - int(inside.sum())
                if needed <= outside:
                    continue  # all of them may be lost
                within = [(gives, takes[inside]) for gives, takes in given]
                cut = _cut(within, outside, needed - outside, length_s)
                asked = 0.0 if cut is None else _asked(cut, needed, prices)
                if asked > most_asked:
                    best, most_asked = cut, asked
        if best is not None:
            found.append(best)
    return tuple(found)


def _asked(cut: FleetCut, needed: int, prices: Sequence[float]) -> float:
    """Price of the cheapest fleet that the cut allows, counts in part allowed."""
    missing = needed - cut.constant
    return min(
        (price * missing / gain for price, gain in zip(prices, cut.per_replica, strict=True) if gain > 0), default=0.0
    )


def _cut(given: Sequence[tuple[float, FloatArray]], outside: int, needed: int, length_s: float) -> FleetCut | None:
    """What the requests inside a window prove: each that is attained takes its share of the resource there.

    Parameters
    ----------
    given : sequence of (float, (n,) float array)
        By engine type, what a second of one replica gives, and what each request inside takes.
    outside : int
        Requests that are attained at no charge.
    needed : int
        Of the requests inside, how many must be attained if all others are.
    length_s : float
        Of the window.
    """
    shares, worth = [], []
    for _, takes in given:
        able = np.isfinite(takes)
        # A worth for each type's resource makes types comparable; any is valid.
        mean = float(takes[able].mean()) if able.any() else 0.0
        worth.append(1 / mean if mean > 0 else 0.0)
        share = np.full(len(takes), np.inf)
        share[able] = takes[able] * worth[-1]
        shares.append(share)
    cheapest = np.min(shares, axis=0)
    dearest_kept = float(np.partition(cheapest, needed - 1)[needed - 1])
    if not 0 < dearest_kept < np.inf:
        return None
    free = outside + float(np.maximum(0.0, 1 - cheapest / dearest_kept).sum())
    gains = [value / dearest_kept * gives * length_s for value, (gives, _) in zip(worth, given, strict=True)]
    return FleetCut(free * (1 + 1e-12), tuple(gain * (1 + 1e-12) for gain in gains))
