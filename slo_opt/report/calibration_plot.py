"""Measured against fitted batch times, one dot a batch."""

from pathlib import Path

import numpy as np

from slo_opt.engine_bridge.calibrate import KINDS, Calibration, kind_of
from slo_opt.report import figure as look

COLOURS = {"decode": look.DECODE, "prefill": look.PREFILL, "mixed": look.LATE}
MOST_DOTS = 4000  # of a long log, evenly spaced


def draw_calibration(found: Calibration, path: Path) -> None:
    """Two panels: measured over fitted time, and their ratio over the tokens of the batch.

    Parameters
    ----------
    found : Calibration
        Engine and batches.
    path : Path
        Picture; its ending names the format.
    """
    step = -(-len(found.samples) // MOST_DOTS)
    samples, fitted_ms = found.samples[::step], 1e3 * np.array(found.fitted_s[::step])
    measured_ms = 1e3 * np.array([sample.seconds for sample in samples])
    tokens = np.array([sample.num_tokens for sample in samples])
    kinds = np.array([kind_of(sample) for sample in samples])
    figure = look.new_figure(9.0, 4.6)
    fit = found.fit
    look.heading(
        figure,
        f"Batch times of {fit.engine.name}, measured and fitted",
        f"{fit.num_samples:,} batches · {fit.shape} · half within {100 * fit.median_error:.1f} % · R² {fit.r2:.4f}",
    )
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        chosen = kinds == kind
        if chosen.any():
            dots = {"s": 9, "alpha": 0.55, "linewidths": 0, "color": COLOURS[kind]}
            left.scatter(fitted_ms[chosen], measured_ms[chosen], label=f"{kind} {int(chosen.sum()):,}", **dots)
            right.scatter(tokens[chosen], measured_ms[chosen] / fitted_ms[chosen], **dots)
    both = np.concatenate([fitted_ms, measured_ms])
    ends = [float(both.min()) / 1.2, float(both.max()) * 1.2]
    left.plot(ends, ends, color=look.INK, linewidth=0.8)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="fitted, ms", ylabel="measured, ms")
    left.set_title("Time")
    look.legend_above(left, 3)
    right.axhline(1.0, color=look.INK, linewidth=0.8)
    right.axhline(fit.p95_ratio, color=look.MUTED, linewidth=0.8, linestyle="--")
    right.set(xscale="log", yscale="log", xlabel="tokens in the batch")
    right.set_title("Measured / fitted; dashed: 95 % are below")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
    look.save(figure, path)
