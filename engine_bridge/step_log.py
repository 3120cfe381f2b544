"""The step log: one line of JSON for each batch that an engine ran, from which `slo-opt calibrate` fits a model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.line_log import LineLog
from slo_opt.traces.engine_file import EngineFields, engine_of
from slo_opt.traces.formats.tables import in_words
from slo_opt.traces.json_file import missing_field, place_of
from slo_opt.traces.source import Source, load

FORMAT = "slo-opt-steps"
VERSION = 1
_REMEDY = "Remove the line, or give a file that the live scheduler wrote (step_log in its configuration)."


class _Step(msgspec.Struct, frozen=True):
    """A line."""

    num_tokens: int
    decode_context_tokens: float
    prefill_pairs: float
    num_requests: int
    draft_steps: int
    seconds: float
    predicted_s: float | None = None


class _Header(msgspec.Struct, frozen=True):
    """The first line; other fields are for people."""

    format: str
    version: int
    engine: EngineFields | None = None
    vllm: str | None = None


@dataclass(frozen=True, slots=True)
class StepRecords:
    """What a step log holds.

    Parameters
    ----------
    samples : tuple of BatchSample
        In the order in which they ran.
    predicted_s : tuple of float or None
        What the engine model of the moment expected of each.
    engine : EngineModel or None
        What the scheduler started with: limits of the engine.
    vllm : str or None
        Release that ran.
    warning : str or None
        Set if the last line is cut short, as after a crash.
    """

    samples: tuple[BatchSample, ...]
    predicted_s: tuple[float | None, ...]
    engine: EngineModel | None = None
    vllm: str | None = None
    warning: str | None = None


class StepLog:
    """Writes batches to a file; never raises, see `LineLog`.

    Parameters
    ----------
    path : Path
        The file, plain JSON lines.
    about : mapping
        For the first line: ``engine`` (an EngineModel), ``vllm`` (its release), and anything else worth knowing.
    **options
        Of `LineLog`.

    Attributes
    ----------
    skipped : int
        Samples that no model can be fitted to.
    """

    def __init__(self, path: str | Path, about: Mapping[str, object] | None = None, **options: Any) -> None:
        self._lines = LineLog(path, {"format": FORMAT, "version": VERSION, **(about or {})}, "step log", **options)
        self.skipped = 0

    @property
    def lost_lines(self) -> int:
        """Lines that could not be written."""
        return self._lines.lost_lines

    def write(self, sample: BatchSample, predicted_s: float | None = None) -> None:
        """Take a batch and what was expected of it."""
        if not sample.usable:
            self.skipped += 1
            return
        self._lines.write(
            _Step(
                sample.num_tokens,
                sample.decode_context_tokens,
                sample.prefill_pairs,
                sample.num_requests,
                sample.draft_steps,
                sample.seconds,
                predicted_s,
            )
        )

    def flush(self) -> None:
        """Write what is buffered."""
        self._lines.flush()

    def close(self) -> None:
        """Write the rest."""
        self._lines.close()


def read_steps(path: str | Path) -> StepRecords:
    """A step log, plain or gzip.

    Raises
    ------
    TraceFormatError
        With the line, what is wrong with it and how to mend it. A last line that is cut short is no error.
    """
    source = load(path, "batch")
    lines = [(number, text) for number, text in enumerate(source.text.split("\n"), start=1) if text.strip()]
    header = _header(source, *lines[0])
    samples: list[BatchSample] = []
    predicted: list[float | None] = []
    warning = None
    decode = msgspec.json.Decoder(_Step).decode
    for number, text in lines[1:]:
        try:
            step = decode(text)
        except msgspec.ValidationError as error:
            raise source.error(number, _in_words(str(error)), _REMEDY) from None
        except (msgspec.DecodeError, RecursionError) as error:
            if number == lines[-1][0] and not source.text.endswith("\n"):
                warning = f"{source.path}: line {number} is cut short and left out"
                break
            raise source.error(number, f"is not JSON ({error}); expected one batch a line", _REMEDY) from None
        sample = BatchSample(
            step.num_tokens,
            step.decode_context_tokens,
            step.prefill_pairs,
            step.num_requests,
            step.draft_steps,
            step.seconds,
        )
        if not sample.usable:
            raise source.error(number, "is no batch: expected tokens, a positive time and nothing negative", _REMEDY)
        samples.append(sample)
        predicted.append(step.predicted_s)
    if not samples:
        raise source.error("file", "holds no batch", "Let the engine serve some requests first.")
    try:
        engine = None if header.engine is None else engine_of(header.engine)
    except InvalidInputError as error:
        raise source.error(lines[0][0], str(error), "Correct the engine, or remove it from the line.") from None
    return StepRecords(tuple(samples), tuple(predicted), engine, header.vllm, warning)


def read_step_log(path: str | Path) -> Sequence[BatchSample]:
    """The batches of a step log; see `read_steps`. A last line that is cut short gives a warning."""
    records = read_steps(path)
    if records.warning is not None:
        warnings.warn(records.warning, stacklevel=2)
    return records.samples


def _header(source: Source, number: int, text: str) -> _Header:
    wanted = f'Give a file that begins with {{"format": "{FORMAT}", "version": {VERSION}}}: a step log.'
    try:
        header = msgspec.json.decode(text, type=_Header)
    except msgspec.ValidationError as error:
        raise source.error(number, f"is no header: {_in_words(str(error))}", wanted) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise source.error(number, f"is not JSON ({error})", wanted) from None
    if header.format != FORMAT or header.version != VERSION:
        found = f"format {header.format!r}, version {header.version}"
        raise source.error(number, f"is the header of something else: {found}", wanted)
    return header


def _in_words(message: str) -> str:
    what, place = place_of(message)
    if (field := missing_field(what)) is not None:
        return f"field {field!r} is missing"
    return in_words(what) if place == "$" else f"{place.removeprefix('$.')}: {in_words(what)}"
