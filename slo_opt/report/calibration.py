"""A calibration as tables and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from slo_opt import __version__
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.engine_bridge.calibrate import Calibration
from slo_opt.report.table import new_table, percent, plural
from slo_opt.traces.engine_file import engine_fields

DOUBTFUL_ERROR = 0.15


def calibration_document(
    found: Calibration,
    source: str,
    *,
    server: dict[str, Any] | None = None,
    overhead_s: float | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Everything that `slo-opt calibrate` reports.

    Parameters
    ----------
    found : Calibration
        Engine, figures and batches.
    source : str
        Where the batches come from.
    server : dict, optional
        What a server told of itself.
    overhead_s : float, optional
        Of a first token: what is no batch.
    notes : list of str, optional
        What the reader should know.
    """
    fit = {key: value for key, value in asdict(found.fit).items() if key != "engine"}
    return {
        "schema": "slo-opt-calibrate",
        "schema_version": 1,
        "slo_opt": __version__,
        "source": source,
        "engine": engine_fields(found.fit.engine),
        "engine_hash": engine_hash(found.fit.engine),
        "fit": fit,
        "kinds": [asdict(kind) for kind in found.kinds],
        "server": server,
        "overhead_s": overhead_s,
        "notes": [*(notes or []), *doubts(found)],
    }


def doubts(found: Calibration) -> list[str]:
    """Why not to trust the fit."""
    fit, said = found.fit, []
    missing = [name for name in ("per_token_s", "decode_context_s", "prefill_pair_s") if name in fit.unidentified]
    if "per_token_s" in missing:
        said.append(
            "the batches tell only how fast the engine is, not what its time depends on: give more of them, and more "
            "kinds"
        )
    elif missing:
        said.append(f"not told by these batches, taken from the engine begun with: {', '.join(missing)}")
    if fit.median_error > DOUBTFUL_ERROR:
        said.append(
            f"half of the batches are more than {percent(fit.median_error, 0)} off: the machine was not alone, or the "
            "engine does something that the model does not know"
        )
    absent = [kind for kind in ("decode", "prefill", "mixed") if kind not in {row.kind for row in found.kinds}]
    if absent:
        said.append(f"no batch of this kind was measured: {', '.join(absent)}")
    return said


def calibration_tables(document: dict[str, Any]) -> RenderableType:
    """Heading, measured against fitted by kind, coefficients, doubts.

    Parameters
    ----------
    document : dict
        See `calibration_document`.
    """
    engine, fit = document["engine"], document["fit"]
    head = Text(engine["name"], style="bold")
    head.append(f"\n{plural(fit['num_samples'], 'batch').replace('batchs', 'batches')} · {fit['shape']}", style="dim")
    head.append(f" · {document['source']}", style="dim")
    kinds = new_table("batches", "tokens", ">number", ">measured", ">fitted", ">median error", ">95 %", ">worst")
    for row in document["kinds"]:
        kinds.add_row(
            row["kind"],
            row["size"],
            f"{row['batches']:,}",
            _time(row["measured_s"]),
            _time(row["fitted_s"]),
            percent(row["median_error"]),
            percent(row["p95_error"]),
            f"{row['worst_ratio']:.2f}x",
        )
    costs = new_table("coefficient", ">fitted", "of", "told by the batches")
    for number, piece in enumerate(engine["pieces"], start=1):
        which = f"piece {number}, " if len(engine["pieces"]) > 1 else ""
        for key, unit in (("per_token_s", "a token"), ("base_s", "a batch"), ("per_draft_step_s", "a draft step")):
            if key in piece:
                costs.add_row(f"{which}{key}", _time(piece[key]), unit, _told(key, fit))
    for key, unit in (
        ("decode_context_s", "a context token of a decode"),
        ("prefill_pair_s", "a query-key pair of prefill"),
        ("request_s", "a request"),
    ):
        costs.add_row(key, _time(engine.get(key, 0.0)), unit, _told(key, fit))
    verdict = Text(f"R² {fit['r2']:.4f}; half of the batches within {percent(fit['median_error'])}", style="bold")
    verdict.append(f", 95 % within {percent(fit['p95_error'])}. ", style="bold")
    verdict.append(
        f"Measured / fitted: 5 % below {fit['p05_ratio']:.2f}, 5 % above {fit['p95_ratio']:.2f}, "
        f"1 % above {fit['p99_ratio']:.2f}, worst {fit['worst_ratio']:.2f}."
    )
    parts: list[RenderableType] = [head, kinds, costs, verdict]
    if document["overhead_s"] is not None:
        parts.append(Text(f"A first token comes {_time(document['overhead_s'])} later than its batch: network, API."))
    parts += [Text(f"Note: {note}.") for note in document["notes"]]
    return Group(*parts)


def _told(key: str, fit: dict[str, Any]) -> str:
    return "yes" if key in fit["identified"] else "no"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "0" if seconds == 0 else f"{seconds / 1e-12:.3g} ps"
