"""Rows of the published traces that the scenarios are built on."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.formats.tables import PositiveCount, csv_rows
from slo_opt.traces.read import read_any
from slo_opt.traces.rows import RawTrace, Row
from slo_opt.traces.source import load


@dataclass(frozen=True, slots=True)
class RealData:
    """A published trace.

    Parameters
    ----------
    title : str
        For reports.
    files : tuple of str
        Where it may lie in the data folder, the first that is there is read.
    start_s : float
        Of the window.
    windowed : bool
        Whether a workload is a window of it, rescaled; otherwise its first requests, stretched.
    only_lengths : bool
        It has no arrivals: they are Poisson.
    """

    title: str
    files: tuple[str, ...]
    start_s: float = 0.0
    windowed: bool = False
    only_lengths: bool = False


_CODE = RealData(
    "Azure 2023 code trace from 1786 s",
    ("traces/azure2023_code.csv.gz", "formats/AzureLLMInferenceTrace_code.csv.gz"),
    start_s=1786.0,
    windowed=True,
)
_CONVERSATION = RealData(
    "Azure 2023 conversation trace from 900 s",
    ("traces/azure2023_conv.csv.gz", "formats/AzureLLMInferenceTrace_conv.csv.gz"),
    start_s=900.0,
    windowed=True,
)
DATA = {
    "coder": _CODE,
    "chatbot": _CONVERSATION,
    "polyserve": _CONVERSATION,
    "qoserve": _CONVERSATION,
    "summarizer": RealData(
        "arXiv summarization lengths, Poisson arrivals",
        ("traces/lengths_arxiv_summarization.csv.gz",),
        only_lengths=True,
    ),
    "reasoning": RealData("ServeGen reasoning trace", ("traces/servegen_reasoning_thin5.csv.gz",)),
}


class _LengthColumns(msgspec.Struct):
    prompt_tokens: PositiveCount
    output_tokens: PositiveCount


def real_rows(name: str, engine: EngineModel, data_dir: Path, seed: int, span_s: float | None) -> RawTrace:
    """Rows of a scenario's trace that fit into the engine's context, from the start of the window on.

    Parameters
    ----------
    name : str
        Scenario, one of `DATA`.
    engine : EngineModel
        Rows over its context are dropped.
    data_dir : Path
        Folder of the traces.
    seed : int
        0 leaves lengths where they are; another shuffles them over the arrivals.
    span_s : float or None
        Only arrivals in ``[start, start + span_s)``.

    Raises
    ------
    InvalidInputError
        The file is missing, or no row is left.
    TraceFormatError
        It is damaged.
    """
    data = DATA[name]
    path = data_file(data_dir, data)
    raw = _lengths(path, seed) if data.only_lengths else _arrivals(path, data.start_s, span_s)
    rows = [row for row in raw.rows if row.prompt_tokens + row.output_tokens <= engine.max_model_len]
    if not rows:
        raise InvalidInputError(
            f"{path}: no request of scenario {name!r} fits into the {engine.max_model_len} tokens of context of "
            f"{engine.name}; choose another engine or a longer duration"
        )
    if seed:
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        rows = [
            replace(row, prompt_tokens=o.prompt_tokens, output_tokens=o.output_tokens, reason_ratio=o.reason_ratio)
            for row, o in zip(rows, [rows[k] for k in order], strict=True)
        ]
    return replace(raw, name=name, rows=tuple(rows))


def data_file(data_dir: Path, data: RealData) -> Path:
    """The file of a trace in the data folder.

    Raises
    ------
    InvalidInputError
        It is not there.
    """
    for file in data.files:
        if (data_dir / file).is_file():
            return data_dir / file
    raise InvalidInputError(
        f"{data_dir}: has no {' and no '.join(data.files)} ({data.title}); name the folder that holds "
        "traces/, or leave --data off to generate the workload"
    )


@lru_cache(maxsize=64)
def data_digest(data_dir: Path, scenarios: tuple[str, ...]) -> str:
    """First 16 hex digits of the SHA-256 of the files that these scenarios read."""
    digest = hashlib.sha256()
    for name in scenarios:
        if name in DATA:
            digest.update(data_file(data_dir, DATA[name]).read_bytes())
    return digest.hexdigest()[:16]


def _arrivals(path: Path, start_s: float, span_s: float | None) -> RawTrace:
    window = (start_s, 1e9 if span_s is None else start_s + span_s)
    raw = read_any(path, window=window)
    assert isinstance(raw, RawTrace)
    return raw


def _lengths(path: Path, seed: int) -> RawTrace:
    """Lengths in the order of the file, under Poisson arrivals of one request a second."""
    source = load(path)
    found = list(csv_rows(source, _LengthColumns))
    gaps_s = np.random.default_rng([seed, 2]).exponential(1.0, len(found))
    times_s = np.cumsum(gaps_s).tolist()
    rows = [
        Row(str(k), time_s, columns.prompt_tokens, columns.output_tokens, line=line)
        for k, (time_s, (line, columns)) in enumerate(zip(times_s, found, strict=True))
    ]
    return RawTrace(source.path, source.name, tuple(rows), {"format": "lengths"})
