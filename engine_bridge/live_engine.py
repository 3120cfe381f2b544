"""The engine model of a running engine: refitted as batches run, with a margin on top."""

import math

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.engine_fit import (
    SECONDS,
    TOKENS,
    Coefficients,
    carried_on,
    clearly_better,
    coefficients_of,
    engine_of,
    held_out_error,
    middle,
    prior_of,
    refine,
)
from slo_opt.engine_bridge.sample_window import SampleWindow

Rows = NDArray[np.intp]

REVIEW_EVERY = 16  # batches
EARLY_REVIEW_EVERY = 4  # while an engine without any model of its own is met
REFIT_EVERY = 64
FIRST_FIT = 16
LEARNING_BATCHES = 512  # after these a model that only learns stays as it is
DRIFT_BATCHES = 32, 128
DRIFT = 0.05, 0.015  # relative, by so many of these batches
DRIFT_SIGMAS = 4.0, 2.5
MISFIT = 0.1
MAX_MARGIN = 3.0
MIN_MARGIN = 0.5
MARGIN_BATCHES = 256
MARGIN_STEP = 0.02
_CHALLENGERS = (1, 0.5, 0.85, 0.25, 0.7, 0.95, 0)  # one piece; two, split at a quantile of the tokens; the template
_RICHNESS = (1, 6, 9)  # coefficients of the template times a factor, of one piece, of two


class LiveEngine:
    """What policies are told of batch times, kept true by what batches take.

    Deterministic: equal samples give equal models. Nothing that is finite makes it raise.

    Parameters
    ----------
    template : EngineModel
        Limits, and batch times to start from.
    learn : bool
        The template's times mean nothing: scale it after 4 batches, fit after 16.
    recalibrate : bool
        Go on refitting, and follow a change of speed. Without it the times stay as they are (with `learn`: after 512
        batches), and only the margin moves.
    quantile : float
        In (0, 1]. The margin is this quantile of actual / predicted over the latest 256 batches, and within
        [1, 3] if the quantile is at least one half (a model that is too slow is mended by the refit, not by a margin
        below 1), else within [0.5, 3]. A stall counts as one batch of 256, however long it was.

    Attributes
    ----------
    engine : EngineModel
        The best fit times the margin. The same object until it changes.
    margin : float
        At the last review.
    refits, drifts, ignored : int
        Times fitted, changes of speed followed, samples left out as unusable.
    """

    def __init__(self, template: EngineModel, *, learn: bool, recalibrate: bool, quantile: float) -> None:
        if not 0 < quantile <= 1:
            raise InvalidInputError(f"quantile of the margin is {quantile}; expected a number in (0, 1]")
        self._template = template
        self._learn, self._recalibrate, self._quantile = learn, recalibrate, quantile
        self._window = SampleWindow(recent=MARGIN_BATCHES)
        self._model = coefficients_of(template)
        self._plain = template
        self._shape = 0
        self._challenger = 0
        self._next_review = EARLY_REVIEW_EVERY if learn else REVIEW_EVERY
        self._last_refit = self._last_drift = 0
        self.engine = template
        self.margin = 1.0
        self.refits = self.drifts = self.ignored = 0

    @property
    def plain(self) -> EngineModel:
        """The best fit without the margin."""
        return self._plain

    def predict_s(self, batch: BatchSample) -> float:
        """Seconds that a batch is expected to take, without the margin; its own `seconds` are not looked at."""
        return self._plain.batch_time_s(
            batch.num_tokens,
            decode_context_tokens=batch.decode_context_tokens,
            prefill_pairs=batch.prefill_pairs,
            num_requests=batch.num_requests,
            draft_steps=batch.draft_steps,
        )

    def observe(self, sample: BatchSample) -> None:
        """Learn from a batch; every 16 batches the model is looked over."""
        if not sample.usable:
            self.ignored += 1
            return
        self._window.add(sample)
        if self._window.count >= self._next_review:
            self._review()

    def _review(self) -> None:
        window = self._window
        learning = self._learn and window.count <= LEARNING_BATCHES
        changed = False
        if self._recalibrate or learning:
            changed = self._follow_drift()
            if window.count < FIRST_FIT:
                changed |= self._rescale()
            elif self._refit_due(learning):
                changed |= self._refit()
        self._next_review = window.count + (EARLY_REVIEW_EVERY if window.count < FIRST_FIT else REVIEW_EVERY)
        if changed:
            self._plain = self._engine_of(self._model)
        margin = self._margin_now()
        if changed or abs(margin - self.margin) > MARGIN_STEP:
            self.margin = margin
            self.engine = engine_of(
                self._model.scaled(margin), self._template, self._template.name, self._template.source
            )

    def _engine_of(self, model: Coefficients) -> EngineModel:
        return engine_of(model, self._template, self._template.name, self._template.source)

    def _margin_now(self) -> float:
        ratios = self._ratios(self._window.latest(MARGIN_BATCHES))
        margin = float(np.quantile(ratios, self._quantile))
        least = 1.0 if self._quantile >= 0.5 else MIN_MARGIN
        return min(MAX_MARGIN, max(least, margin))

    def _ratios(self, rows: Rows) -> NDArray[np.float64]:
        table = self._window.table(rows)
        ratios: NDArray[np.float64] = table[:, SECONDS] / np.maximum(self._model.predict_s(table), 1e-9)
        return ratios

    def _rescale(self) -> bool:
        """The template times the median of actual / predicted."""
        self._model = prior_of(self._template, self._window.table(self._window.rows()))
        return True

    def _follow_drift(self) -> bool:
        """Where the latest batches differ from earlier ones of their kind, the engine has changed its speed.

        A large change is told by a few batches. How large it was exactly takes more of them.
        """
        since = min(DRIFT_BATCHES[1], self._window.count - self._last_drift)
        for number, least, sigmas in zip((DRIFT_BATCHES[0], since), DRIFT, DRIFT_SIGMAS, strict=True):
            factor = self._change(number, least, sigmas)
            if factor is not None:
                self._window.slow_down(self._window.rows()[:-number], factor)
                self._model = self._model.scaled(factor)
                if number != since:
                    self._last_drift = self._window.count - DRIFT_BATCHES[0] // 2
                    self.drifts += 1
                return True
        return False

    def _change(self, number: int, least: float, sigmas: float) -> float | None:
        """Factor from earlier batches to the latest `number`, if it is more than `least` and than chance.

        Compared within a kind, so that a model that is wrong about one kind of batch is not taken for a slow engine.
        """
        rows = self._window.rows()
        if number < DRIFT_BATCHES[0] or len(rows) <= number:
            return None
        earlier, latest = rows[:-number], rows[-number:]
        now, before = self._ratios(latest), self._ratios(earlier)
        kinds, kinds_before = self._window.kinds(latest), self._window.kinds(earlier)
        changes = []
        for kind in np.unique(kinds):
            reference = before[kinds_before == kind]
            if len(reference) >= 4:
                changes.append(np.log(now[kinds == kind] / middle(reference)))
        logs = np.concatenate(changes) if changes else np.zeros(0)
        if 2 * len(logs) < number:
            return None
        change = middle(logs)
        spread = 1.4826 * middle(np.abs(logs - change)) / math.sqrt(len(logs))
        return math.exp(change) if abs(change) > max(least, sigmas * spread) else None

    def _refit_due(self, learning: bool) -> bool:
        since = self._window.count - self._last_refit
        if since >= REFIT_EVERY or (learning and self._window.count < 2 * REFIT_EVERY):
            return True
        typical = middle(self._ratios(self._window.latest(DRIFT_BATCHES[0])))
        return since >= DRIFT_BATCHES[0] and abs(math.log(max(typical, 1e-12))) > MISFIT

    def _refit(self) -> bool:
        """Fit the present shape again, and one other: the starts of a full fit, spread over many refits."""
        table = self._window.table(self._window.rows())
        prior = prior_of(self._template, table)
        best_shape, best = self._shape, self._same_shape(table, prior)
        best_error = _corrected(best, table, self._shape)
        other = _CHALLENGERS[self._challenger]
        self._challenger = (self._challenger + 1) % len(_CHALLENGERS)
        shape, found = _challenge(table, prior, other)
        error = _corrected(found, table, shape)
        if clearly_better(error, best_error) if shape > best_shape else error < best_error:
            best_shape, best = shape, found
        self._last_refit = self._window.count
        self.refits += 1
        self._shape = best_shape
        self._model = carried_on(best, table, prior, self._template.max_num_batched_tokens) if best_shape else best
        return True

    def _same_shape(self, table: NDArray[np.float64], prior: Coefficients) -> Coefficients:
        if not self._shape:
            return prior
        pieces = self._shape
        trimmed = Coefficients(self._model.pieces[:pieces], self._model.shared)
        return refine(table, prior, trimmed.lines_s(table).argmax(axis=1), pieces, rounds=4)


def _challenge(table: NDArray[np.float64], prior: Coefficients, other: float) -> tuple[int, Coefficients]:
    if other == 0:
        return 0, prior
    tokens = table[:, TOKENS]
    start = (tokens > np.quantile(tokens, other)).astype(np.intp) if other < 1 else np.zeros(len(table), dtype=np.intp)
    if other == 1 or not start.any() or start.all():
        return 1, refine(table, prior, np.zeros(len(table), dtype=np.intp), 1, rounds=4)
    return 2, refine(table, prior, start, 2, rounds=6)


def _corrected(found: Coefficients, table: NDArray[np.float64], shape: int) -> float:
    """Error on the samples, corrected for the coefficients spent on them (Akaike's final prediction error, 1969)."""
    spent = _RICHNESS[shape]
    return held_out_error(found, table) * (len(table) + spent) / max(1, len(table) - spent)
