"""The instances of a gap table, one a load, told in plain data so that any process can make them again."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.fingerprint import engine_hash
from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import ScoreRule
from slo_opt.simulate.workload import Workload
from slo_opt.traces.engine_file import engine_from
from slo_opt.traces.read import read_trace
from slo_opt.traces.unservable import apply_unservable


@dataclass(frozen=True, slots=True)
class ScenarioSource:
    """A named scenario; a load is a multiple of a rate.

    Parameters
    ----------
    scenario, engine : str
        Names.
    rate : float
        Requests a second at load 1.
    duration_s, seed, data_dir, score_rule
        See `Workload`.
    """

    scenario: str
    engine: str
    rate: float
    duration_s: float = 300.0
    seed: int = 0
    data_dir: Path | None = None
    score_rule: ScoreRule = ScoreRule.DSLO

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.scenario} · {self.engine}"

    def workload(self, load: float) -> Workload:
        """The workload at a load."""
        engine = engine_from(self.engine)
        return Workload(
            self.scenario, engine, self.rate * load, self.duration_s, self.seed, self.data_dir, self.score_rule
        )

    def inputs(self, load: float) -> dict[str, Any]:
        """What the instance of a load depends on."""
        workload = self.workload(load)
        return {
            "kind": "scenario",
            "scenario": self.scenario,
            "engine": self.engine,
            "engine_hash": engine_hash(workload.engine),
            "rate": workload.rate,
            "duration_s": self.duration_s,
            "seed": self.seed,
            "data": workload.digest,
            "score_rule": self.score_rule.value,
        }

    @property
    def where(self) -> dict[str, Any]:
        """Where its files are."""
        return {"place": None if self.data_dir is None else str(self.data_dir)}

    def describe(self) -> dict[str, Any]:
        """For reports."""
        facts = {**asdict(self), "data_dir": None if self.data_dir is None else str(self.data_dir)}
        return {"kind": "scenario", **facts, "source": self.workload(1.0).source}


@dataclass(frozen=True, slots=True)
class TraceSource:
    """A trace file; a load is a factor on its arrival rate.

    Parameters
    ----------
    path : Path
        The file.
    engine, scenario, input_format, window, seed
        See `read_trace`.
    score_rule : ScoreRule or None
        None for the trace's own.
    unservable : str
        See `apply_unservable`.
    """

    path: Path
    engine: str | None = None
    scenario: str | None = None
    input_format: str | None = None
    window: tuple[float, float] | None = None
    seed: int = 0
    score_rule: ScoreRule | None = None
    unservable: str = "error"

    @property
    def name(self) -> str:
        """For people."""
        return " · ".join(filter(None, (self.path.name, self.scenario, self.engine)))

    def inputs(self, load: float) -> dict[str, Any]:
        """What the instance of a load depends on."""
        engine = None if self.engine is None else engine_hash(engine_from(self.engine))
        return {"kind": "trace", **self._options(), "scale": load, "engine_hash": engine, "file": _digest(self.path)}

    def _options(self) -> dict[str, Any]:
        options = asdict(self)
        del options["path"]
        options["window"] = None if self.window is None else list(self.window)
        return options

    @property
    def where(self) -> dict[str, Any]:
        """Where its file is."""
        return {"place": str(self.path)}

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {"kind": "trace", "path": str(self.path), **self._options()}


GapSource = ScenarioSource | TraceSource


@lru_cache(maxsize=4)
def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except IsADirectoryError:
        raise InvalidInputError(f"{path}: is a folder; name a trace file in it") from None


def instance_of(inputs: Mapping[str, Any], place: str | None) -> Instance:
    """The instance that `ScenarioSource.inputs` or `TraceSource.inputs` describes.

    Raises
    ------
    InvalidInputError, TraceFormatError
        As reading it does.
    """
    if inputs["kind"] == "scenario":
        return Workload(
            inputs["scenario"],
            engine_from(inputs["engine"]),
            inputs["rate"],
            inputs["duration_s"],
            inputs["seed"],
            None if place is None else Path(place),
            ScoreRule(inputs["score_rule"]),
        ).instance()
    assert place is not None
    trace = read_trace(
        place,
        input_format=inputs["input_format"],
        scenario=inputs["scenario"],
        engine=inputs["engine"],
        seed=inputs["seed"],
        window=None if inputs["window"] is None else tuple(inputs["window"]),
        scale=inputs["scale"],
    )
    rule = inputs["score_rule"]
    whole = trace.to_instance(engine=inputs["engine"], score_rule=None if rule is None else ScoreRule(rule))
    return apply_unservable(whole, inputs["unservable"])
