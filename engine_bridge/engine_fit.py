"""Fits an engine model to batches that were run.

``T = max_l(k_l N + d_l steps + b_l) + c_dec S + c_pf Q + r n`` seconds; host time has no column of its own and is
part of each ``b_l``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.nonnegative import solve_nonnegative

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

SHARED = ("decode_context_s", "prefill_pair_s", "request_s")
TOKENS, STEPS, CONTEXT, PAIRS, REQUESTS, SECONDS = range(6)  # columns of a table of samples
MIN_SAMPLES_FOR_SHAPE = 16
MOST_OF_A_KIND = 100
WORTH = 0.05, 5e-4  # a richer model must lower the error by this share of it, and by this
_SIGMA = 0.02, 0.05  # below, the prior would count for nothing; above, it would explain its own errors as noise
_HUBER = 1.5
_STALL = float(np.log(5))
_ROUNDS = 12
_MAX_S = 9e3
_MIN_TOKEN_S = 1e-10
_PRIOR_SHARE = 0.03
_PRIOR_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The numbers of a fit, as arrays.

    Parameters
    ----------
    pieces : array of shape (L, 3)
        ``k_l``, ``d_l``, ``b_l`` of each roofline piece.
    shared : array of shape (3,)
        ``c_dec``, ``c_pf``, ``r``.
    """

    pieces: Floats
    shared: Floats

    def lines_s(self, table: Floats) -> Floats:
        """Seconds of each piece, shape (samples, L)."""
        lines: Floats = table[:, :2] @ self.pieces[:, :2].T + self.pieces[:, 2]
        return lines

    def predict_s(self, table: Floats) -> Floats:
        """Seconds of each sample, shape (samples,)."""
        times: Floats = self.lines_s(table).max(axis=1) + table[:, CONTEXT:SECONDS] @ self.shared
        return times

    def scaled(self, factor: float) -> "Coefficients":
        """All times multiplied."""
        return Coefficients(self.pieces * factor, self.shared * factor)


@dataclass(frozen=True, slots=True)
class EngineFit:
    """An engine model, and how well it describes the batches that it was fitted to.

    Parameters
    ----------
    engine : EngineModel
        The fitted times with the limits of the template.
    num_samples : int
        Batches used.
    shape : str
        ``scaled template`` (too few or too similar batches for more, or the template is right as it is), ``one piece``
        or ``two pieces``.
    r2 : float
        Share of the variance of the batch times that is explained, stalls included.
    median_error, p95_error : float
        Quantiles of ``|actual / predicted - 1|``.
    p05_ratio, p50_ratio, p90_ratio, p95_ratio, p99_ratio : float
        Quantiles of actual / predicted.
    worst_ratio : float
        Largest actual / predicted: the worst under-prediction.
    identified, unidentified : tuple of str
        Coefficients that the batches determine, and those left near the template's value times the speed found.
    """

    engine: EngineModel
    num_samples: int
    shape: str
    r2: float
    median_error: float
    p95_error: float
    p05_ratio: float
    p50_ratio: float
    p90_ratio: float
    p95_ratio: float
    p99_ratio: float
    worst_ratio: float
    identified: tuple[str, ...]
    unidentified: tuple[str, ...]


def table_of(samples: Sequence[BatchSample]) -> Floats:
    """Samples as an array of shape (samples, 6); unusable ones are left out."""
    rows = [
        (s.num_tokens, s.draft_steps, s.decode_context_tokens, s.prefill_pairs, s.num_requests, s.seconds)
        for s in samples
        if s.usable
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def coefficients_of(engine: EngineModel) -> Coefficients:
    """The times of an engine model as arrays, host time within the pieces."""
    rows = [(p.per_token_s, p.per_draft_step_s, p.base_s + engine.host_s) for p in engine.pieces]
    return Coefficients(np.array(rows), np.array([engine.decode_context_s, engine.prefill_pair_s, engine.request_s]))


def engine_of(coefficients: Coefficients, template: EngineModel, name: str, source: str) -> EngineModel:
    """An engine model with these times and the limits of the template."""
    pieces = np.clip(np.nan_to_num(coefficients.pieces), 0.0, _MAX_S)
    pieces[:, 0] = np.maximum(pieces[:, 0], _MIN_TOKEN_S)  # a batch of more tokens is never free
    shared = np.clip(np.nan_to_num(coefficients.shared), 0.0, _MAX_S)
    return replace(
        template,
        name=name,
        source=source,
        pieces=tuple(RooflinePiece(float(k), float(b), float(d)) for k, d, b in pieces),
        decode_context_s=float(shared[0]),
        prefill_pair_s=float(shared[1]),
        request_s=float(shared[2]),
        host_s=0.0,
    )


def fit_engine(samples: Sequence[BatchSample], template: EngineModel, *, name: str | None = None) -> EngineFit:
    """Fit the coefficients of the engine model to measured batches.

    At most `MOST_OF_A_KIND` batches of a kind, evenly spaced: most batches of an engine are decodes of one size.
    Weighted by one over the predicted time, so that small batches count as much as large ones; Huber weights, so that
    stalls do not; no coefficient below 0. One or two roofline pieces, or only the template times a factor: the richer
    model is kept where it is clearly better on samples held out. A coefficient that the samples cannot tell stays near
    that of the template times the factor; past the largest batch seen, the template's slope goes on.

    Parameters
    ----------
    samples : sequence of BatchSample
        Unusable ones are left out.
    template : EngineModel
        Gives limits, and times where the samples are silent.
    name : str, optional
        Of the new engine; default: the template's with ``-fitted``.

    Raises
    ------
    InvalidInputError
        No sample is usable.

    References
    ----------
    Alternating assignment and least squares: Magnani, Boyd: Convex piecewise-linear fitting, Optimization and
    Engineering 10 (2009), 1-17, doi:10.1007/s11081-008-9045-3. Weights: Huber: Robust estimation of a location
    parameter, Annals of Mathematical Statistics 35 (1964), 73-101.
    """
    table = table_of(samples)
    if not len(table):
        raise InvalidInputError("no batch to fit to: give at least one with tokens and a positive time")
    prior = prior_of(template, table)
    fitted_to = table[balanced(table)]
    shape, found = choose(fitted_to, prior)
    found = carried_on(found, table, prior, template.max_num_batched_tokens)
    known = identified(found, fitted_to, prior) if len(fitted_to) >= MIN_SAMPLES_FOR_SHAPE else ()
    names = (*_PIECE_NAMES, *SHARED)
    ratios = table[:, SECONDS] / found.predict_s(table)
    errors = np.abs(ratios - 1)
    seconds = table[:, SECONDS]
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    missed = float(((seconds - seconds / ratios) ** 2).sum())
    r2 = 1 - missed / spread if spread > 0 else float(missed == 0)
    p05, p50, p90, p95, p99 = (float(value) for value in np.quantile(ratios, (0.05, 0.5, 0.9, 0.95, 0.99)))
    source = f"fitted to {len(table)} measured batches ({SHAPES[shape]}, median error {np.median(errors):.1%})"
    return EngineFit(
        engine=engine_of(found, template, name or f"{template.name}-fitted", source),
        num_samples=len(table),
        shape=SHAPES[shape],
        r2=r2,
        median_error=float(np.median(errors)),
        p95_error=float(np.quantile(errors, 0.95)),
        p05_ratio=p05,
        p50_ratio=p50,
        p90_ratio=p90,
        p95_ratio=p95,
        p99_ratio=p99,
        worst_ratio=float(ratios.max()),
        identified=tuple(item for item in names if item in known),
        unidentified=tuple(item for item in names if item not in known),
    )


SHAPES = ("scaled template", "one piece", "two pieces")
_PIECE_NAMES = ("per_token_s", "per_draft_step_s", "base_s")


def middle(values: Floats) -> float:
    """The upper median; a sixth of the time of numpy's for a few hundred values."""
    half = len(values) // 2
    return float(np.partition(values, half)[half])


def prior_of(template: EngineModel, table: Floats) -> Coefficients:
    """The template times the median of actual / predicted."""
    coefficients = coefficients_of(template)
    predicted = coefficients.predict_s(table)
    return coefficients.scaled(middle(table[:, SECONDS] / np.maximum(predicted, 1e-9)))


def balanced(table: Floats) -> Indices:
    """Rows to fit to: so many of each kind (mix, powers of two of the tokens, of four of the context), in order."""
    mix = (table[:, CONTEXT] > 0) + 2.0 * (table[:, PAIRS] > 0)
    tokens = np.floor(np.log2(table[:, TOKENS]))
    context = np.floor(np.log2(1 + table[:, CONTEXT]) / 2)
    kinds = np.unique(np.stack([mix, tokens, context], axis=1), axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(kinds, kind="stable")
    counts = np.bincount(kinds)
    parts = np.split(order, np.cumsum(counts)[:-1])
    spaced = [part[np.linspace(0, len(part) - 1, min(len(part), MOST_OF_A_KIND)).astype(np.intp)] for part in parts]
    return np.sort(np.concatenate(spaced))


def choose(table: Floats, prior: Coefficients) -> tuple[int, Coefficients]:
    """The number of pieces that pays on held-out samples (0: the prior as it is), and the fit to all samples."""
    if len(table) < MIN_SAMPLES_FOR_SHAPE:
        return 0, prior
    held = held_out(len(table))
    kept, judged = table[~held], table[held]
    shape, best = 0, held_out_error(prior, judged)
    for pieces in (1, 2):
        error = held_out_error(fit_shape(kept, prior, pieces), judged)
        if clearly_better(error, best):
            shape, best = pieces, error
    return shape, fit_shape(table, prior, shape) if shape else prior


def clearly_better(error: float, best: float) -> bool:
    """Whether a richer model pays: by a share of the error, and by more than rounding."""
    share, least = WORTH
    return error < best - max(share * best, least)


def held_out(count: int) -> NDArray[np.bool_]:
    """A fixed quarter of the samples, scattered so that no rhythm of a sweep falls in with it."""
    scattered = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(16)) % np.uint64(4)
    chosen: NDArray[np.bool_] = scattered == 0
    return chosen


def held_out_error(coefficients: Coefficients, table: Floats) -> float:
    """Mean of ``|log(actual / predicted)|``; a stall counts as a factor of five."""
    if not len(table):
        return 0.0
    ratios = table[:, SECONDS] / np.maximum(coefficients.predict_s(table), 1e-9)
    return float(np.minimum(np.abs(np.log(ratios)), _STALL).mean())


def fit_shape(table: Floats, prior: Coefficients, pieces: int) -> Coefficients:
    """Best fit with one or two pieces, over the starts."""
    if pieces == 1:
        return refine(table, prior, np.zeros(len(table), dtype=np.intp), 1)
    tokens = table[:, TOKENS]
    found = []
    for threshold in np.unique(np.quantile(tokens, (0.25, 0.5, 0.7, 0.85, 0.95))):
        start = (tokens > threshold).astype(np.intp)
        if start.any() and not start.all():
            found.append(refine(table, prior, start, 2))
    if not found:
        return refine(table, prior, np.zeros(len(table), dtype=np.intp), 1)
    return min(found, key=lambda item: held_out_error(item, table))


def refine(table: Floats, prior: Coefficients, start: Indices, pieces: int, rounds: int = _ROUNDS) -> Coefficients:
    """Alternate: robust weights and the piece that each sample is on, then least squares.

    Parameters
    ----------
    table : array of shape (samples, 6)
    prior : Coefficients
        What silent columns are drawn to.
    start : array of int, shape (samples,)
        Piece of each sample.
    pieces : int
        How many there are.
    rounds : int
        At most so many.
    """
    seconds = table[:, SECONDS]
    wanted = prior_vector(table, prior, pieces)
    assigned = start
    weighting = np.maximum(seconds, np.partition(seconds, len(seconds) // 20)[len(seconds) // 20])
    sigma = _SIGMA[1]
    weights = np.ones(len(table))
    found = None
    for _ in range(rounds):
        found = _least_squares(table, assigned, weights, weighting, sigma, wanted, pieces)
        predicted = np.maximum(found.predict_s(table), 1e-9)
        errors = seconds / predicted - 1
        size = np.abs(errors)
        sigma = _spread_of(size)
        weights = _huber(size, sigma)
        settled = bool((np.abs(weighting - predicted) <= 1e-3 * predicted).all())
        again = found.lines_s(table).argmax(axis=1)
        weighting = predicted
        if settled and (again == assigned).all():
            break
        assigned = again
    assert found is not None
    return found


def _spread_of(errors: Floats) -> float:
    """Standard deviation of relative errors, from their middle; never below what any model misses."""
    return max(_SIGMA[0], 1.4826 * middle(errors))


def _huber(errors: Floats, sigma: float) -> Floats:
    weights: Floats = np.minimum(1.0, _HUBER * sigma / np.maximum(errors, 1e-12))
    return weights


def prior_vector(table: Floats, prior: Coefficients, pieces: int) -> Floats:
    """The prior's coefficients in the order of the design: each piece's three, then the shared three."""
    by_slope = prior.pieces[prior.pieces[:, 0].argsort(kind="stable")]
    if pieces == 2:
        chosen = by_slope[[0, -1]]
    else:
        # The piece that the prior is on at the typical batch.
        typical = np.array([[middle(table[:, TOKENS]), middle(table[:, STEPS])]])
        chosen = by_slope[[int((typical @ by_slope[:, :2].T + by_slope[:, 2])[0].argmax())]]
    return np.concatenate([chosen.ravel(), prior.shared])


def _design(table: Floats, assigned: Indices, pieces: int) -> Floats:
    rows = len(table)
    design = np.zeros((rows, 3 * pieces + 3))
    for piece in range(pieces):
        on = (assigned == piece).astype(np.float64) if pieces > 1 else np.ones(rows)
        design[:, 3 * piece] = table[:, TOKENS] * on
        design[:, 3 * piece + 1] = table[:, STEPS] * on
        design[:, 3 * piece + 2] = on
    design[:, 3 * pieces :] = table[:, CONTEXT:SECONDS]
    return design


def _least_squares(
    table: Floats, assigned: Indices, weights: Floats, weighting: Floats, sigma: float, wanted: Floats, pieces: int
) -> Coefficients:
    normal, right, scale, spread = _normal(table, assigned, weights, weighting, sigma, wanted, pieces)
    # Never so weak that columns which go together make the equations singular.
    pull = np.maximum(1 / spread**2, 1e-9 * float(normal.diagonal().max()))
    share = wanted * scale
    normal[np.diag_indices(len(pull))] += pull
    solution = solve_nonnegative(normal, right + pull * share) / scale
    return Coefficients(solution[: 3 * pieces].reshape(pieces, 3), solution[3 * pieces :])


def _normal(
    table: Floats, assigned: Indices, weights: Floats, weighting: Floats, sigma: float, wanted: Floats, pieces: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Normal equations in units of each column's typical share of the batch time, and the prior's spread in them."""
    relative = _design(table, assigned, pieces) / weighting[:, None]
    scale = np.sqrt((relative**2).mean(axis=0))
    scale[scale <= 0] = 1.0
    relative /= scale
    weighted = relative * (weights / min(sigma, _SIGMA[1]) ** 2)[:, None]
    normal = relative.T @ weighted
    right = weighted.T @ (table[:, SECONDS] / weighting)
    spread = _PRIOR_FACTOR * wanted * scale + _PRIOR_SHARE
    return normal, right, scale, spread


def identified(found: Coefficients, table: Floats, prior: Coefficients) -> tuple[str, ...]:
    """Names of the coefficients that the samples tell: known to a tenth of the batch time, and better than the prior.

    A coefficient of two pieces counts if one of them is told.
    """
    pieces = min(len(found.pieces), 2)
    trimmed = Coefficients(found.pieces[:pieces], found.shared)
    predicted = np.maximum(trimmed.predict_s(table), 1e-9)
    errors = np.abs(table[:, SECONDS] / predicted - 1)
    sigma = _spread_of(errors)
    weights = _huber(errors, sigma)
    assigned = trimmed.lines_s(table).argmax(axis=1)
    wanted = prior_vector(table, prior, pieces)
    normal, _, _, spread = _normal(table, assigned, weights, predicted, sigma, wanted, pieces)
    told = set()
    for column in range(len(wanted)):
        rest = [other for other in range(len(wanted)) if other != column]
        block = normal[np.ix_(rest, rest)] + np.eye(len(rest)) * 1e-9 * max(1.0, float(normal.max()))
        information = normal[column, column] - normal[column, rest] @ np.linalg.solve(block, normal[rest, column])
        if information > max(1 / spread[column] ** 2, 100.0):
            told.add((*(_PIECE_NAMES * pieces), *SHARED)[column])
    return tuple(sorted(told))


def carried_on(found: Coefficients, table: Floats, prior: Coefficients, max_tokens: int) -> Coefficients:
    """Past the largest batches seen, let no token be cheaper than the prior's dearest.

    Where the batches end below a quarter of what the engine may run, a fit of them says little of larger ones: a piece
    with the prior's steepest slope goes on from there, at most in proportion to the tokens.
    """
    tokens = np.sort(table[:, TOKENS])
    largest = float(tokens[max(0, len(tokens) - 3)])
    if 4 * largest >= max_tokens:
        return found
    at_largest_s = float((found.pieces[:, 0] * largest + found.pieces[:, 2]).max())
    slope = min(float(prior.pieces[:, 0].max()), at_largest_s / largest)
    if slope <= float(found.pieces[:, 0].max()):
        return found
    extra = np.array([[slope, float(found.pieces[:, 1].max()), max(0.0, at_largest_s - slope * largest)]])
    return Coefficients(np.concatenate([found.pieces, extra]), found.shared)
