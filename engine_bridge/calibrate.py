"""An engine model from measured batches, with what is needed to judge it: measured against fitted, kind by kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.engine_fit import EngineFit, coefficients_of, fit_engine, table_of

KINDS = ("decode", "prefill", "mixed")
SIZES = ((16, "to 16 tokens"), (128, "to 128"), (1024, "to 1,024"), (1 << 62, "more"))

# Where nothing is known: a slow GPU, or a machine without one until its speed is found.
GENERIC = EngineModel("generic", "no measurement", (RooflinePiece(5e-5, 1e-2),))


@dataclass(frozen=True, slots=True)
class KindOfBatch:
    """Batches of one kind and size, measured and fitted.

    Parameters
    ----------
    kind : str
        ``decode``, ``prefill`` or ``mixed``.
    size : str
        Scheduled tokens, in words.
    batches : int
        How many there are.
    measured_s, fitted_s : float
        Medians.
    median_error, p95_error : float
        Of ``|measured / fitted - 1|``.
    worst_ratio : float
        Largest measured / fitted.
    """

    kind: str
    size: str
    batches: int
    measured_s: float
    fitted_s: float
    median_error: float
    p95_error: float
    worst_ratio: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted engine and the batches that it was fitted to.

    Parameters
    ----------
    fit : EngineFit
        Engine and figures.
    samples : tuple of BatchSample
        The usable ones, in the order given.
    fitted_s : tuple of float
        What the engine model says of each.
    kinds : tuple of KindOfBatch
        By kind and size, those that occur.
    """

    fit: EngineFit
    samples: tuple[BatchSample, ...]
    fitted_s: tuple[float, ...]
    kinds: tuple[KindOfBatch, ...]


def kind_of(sample: BatchSample) -> str:
    """Which of `KINDS` a batch is; a decode without context counts as prefill."""
    if not sample.prefill_pairs:
        return "decode"
    return "mixed" if sample.decode_context_tokens else "prefill"


def calibrate(samples: Sequence[BatchSample], template: EngineModel, *, name: str) -> Calibration:
    """Fit an engine, see `fit_engine`, and compare it with the batches kind by kind.

    Raises
    ------
    InvalidInputError
        No sample is usable.
    """
    usable = tuple(sample for sample in samples if sample.usable)
    fit = fit_engine(usable, template, name=name)
    table = table_of(usable)
    fitted_s = coefficients_of(fit.engine).predict_s(table)
    ratios = np.array([sample.seconds for sample in usable]) / fitted_s
    labels = [(kind_of(sample), _size_of(sample)) for sample in usable]
    kinds = []
    for kind in KINDS:
        for _, size in SIZES:
            chosen = np.array([label == (kind, size) for label in labels])
            if not chosen.any():
                continue
            errors = np.abs(ratios[chosen] - 1)
            kinds.append(
                KindOfBatch(
                    kind,
                    size,
                    int(chosen.sum()),
                    float(np.median(table[chosen, -1])),
                    float(np.median(fitted_s[chosen])),
                    float(np.median(errors)),
                    float(np.quantile(errors, 0.95)),
                    float(ratios[chosen].max()),
                )
            )
    return Calibration(fit, usable, tuple(fitted_s.tolist()), tuple(kinds))


def _size_of(sample: BatchSample) -> str:
    return next(words for most, words in SIZES if sample.num_tokens <= most)
