"""Saved runs side by side: those about the same requests, engine and score rule, averaged over their seeds."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slo_opt.analysis.runs import Named, RunRecord
from slo_opt.domain.slo import ScoreRule
from slo_opt.simulate.metrics import Percentiles

_Pick = Callable[[RunRecord], float | None]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _latency(field: str, percentile: str) -> _Pick:
    def pick(record: RunRecord) -> float | None:
        found: Percentiles = getattr(record.metrics.total, field)
        value: float | None = getattr(found, percentile)
        return value

    return pick


FIGURES: dict[str, _Pick] = {
    "attained": lambda record: record.metrics.total.attained,
    "admitted": lambda record: record.metrics.total.admitted,
    "declined": lambda record: record.metrics.total.offered - record.metrics.total.admitted,
    "value": lambda record: record.metrics.total.value,
    "attainment": lambda record: record.metrics.total.attainment,
    "attainment_admitted": lambda record: record.metrics.total.attainment_admitted,
    "goodput_rps": lambda record: record.metrics.total.goodput_rps,
    "goodput_tokens_per_s": lambda record: record.metrics.total.goodput_tokens_per_s,
    "ttft_p50_ms": _latency("ttft_ms", "p50"),
    "ttft_p99_ms": _latency("ttft_ms", "p99"),
    "tpot_p99_ms": _latency("tpot_ms", "p99"),
    "itl_p99_ms": _latency("itl_ms", "p99"),
    "utilisation": lambda record: record.metrics.utilisation,
    "peak_kv_share": lambda record: _share(record.metrics.peak_kv_blocks, record.metrics.kv_blocks),
    "num_preemptions": lambda record: record.metrics.num_preemptions,
    "num_rejected": lambda record: record.metrics.num_rejected,
    "num_demoted": lambda record: record.metrics.num_demoted,
    "decision_p99_ms": lambda record: record.metrics.decision_ms.p99,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the runs of one row; None where no run has it.

    Parameters
    ----------
    mean, least, most : float or None
        Over the runs that have it.
    """

    mean: float | None
    least: float | None
    most: float | None

    @staticmethod
    def of(values: Iterable[float | None]) -> "Spread":
        """The spread of values."""
        known = [value for value in values if value is not None]
        return Spread(sum(known) / len(known), min(known), max(known)) if known else Spread(None, None, None)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy under one setting, over its seeds.

    Parameters
    ----------
    label : str
        Name of the policy, with what tells it from other rows of that policy.
    runs : tuple of RunRecord
        One a seed.
    """

    label: str
    runs: tuple[RunRecord, ...]

    def figure(self, name: str) -> Spread:
        """One of `FIGURES`."""
        return Spread.of(FIGURES[name](run) for run in self.runs)

    def attainment_of(self, slo: str) -> Spread:
        """Share of the offered requests of an SLO class that is attained."""
        return Spread.of(row.attainment for run in self.runs for row in run.metrics.classes if row.name == slo)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        first = self.runs[0]
        simulation = asdict(first.simulation)
        del simulation["seed"]
        return {
            "label": self.label,
            "policy": first.policy,
            "setting": first.setting,
            "lengths": first.lengths,
            "simulation": simulation,
            "seeds": [run.simulation.seed for run in self.runs],
            "figures": {name: asdict(self.figure(name)) for name in FIGURES},
            "classes": {row.name: asdict(self.attainment_of(row.name)) for row in first.metrics.classes if row.offered},
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that may be compared: the same requests, engine and score rule.

    Parameters
    ----------
    requests, engine : Named
        What was served, and where.
    score_rule : ScoreRule
        What counts as attained.
    offered : int
        Requests under an SLO.
    rows : tuple of Row
        The most attained value first.
    """

    requests: Named
    engine: Named
    score_rule: ScoreRule
    offered: int
    rows: tuple[Row, ...]

    @property
    def first(self) -> RunRecord:
        """A run that stands for what all of them have in common."""
        return self.rows[0].runs[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "requests": asdict(self.requests),
            "engine": asdict(self.engine),
            "score_rule": self.score_rule.value,
            "offered": self.offered,
            "trace": asdict(self.first.trace),
            "limits": self.first.limits,
            "rows": [row.to_dict() for row in self.rows],
        }


def _described(record: RunRecord) -> dict[str, Any]:
    """What a row has in common, key by key."""
    options = asdict(replace(record.simulation, seed=0))
    fleet = {} if record.fleet is None else record.fleet.described()
    return {
        **record.setting,
        **fleet,
        "lengths": record.lengths,
        **{key: options[key] for key in options if key != "seed"},
    }


def _labels(keys: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names of policies; where one occurs more than once, with the values that differ."""
    labels = []
    for policy, described in keys:
        twins = [other for name, other in keys if name == policy]
        differ = [key for key in described if any(other.get(key) != described[key] for other in twins)]
        labels.append(" ".join([policy, *(f"{key}={_plain(described[key])}" for key in differ)]))
    return labels


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def compare_runs(records: Iterable[RunRecord]) -> tuple[list[Group], int]:
    """Group runs that may be compared.

    Parameters
    ----------
    records : iterable of RunRecord
        In the order in which they were made. A run that repeats an earlier one, seed and all, replaces it.

    Returns
    -------
    groups : list of Group
        In order of their first run.
    replaced : int
        Runs that a later one replaced.
    """
    groups: dict[tuple[str, str, ScoreRule], dict[tuple[str, str], dict[int, RunRecord]]] = {}
    replaced = 0
    for record in records:
        rows = groups.setdefault((record.requests.hash, record.engine.hash, record.score_rule), {})
        key = (record.policy, json.dumps(_described(record), sort_keys=True))
        seeds = rows.setdefault(key, {})
        replaced += record.simulation.seed in seeds
        seeds[record.simulation.seed] = record
    found = []
    for by_row in groups.values():
        runs = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in by_row.values()]
        labels = _labels([(row[0].policy, _described(row[0])) for row in runs])
        found_rows = sorted(map(Row, labels, runs), key=lambda row: -(row.figure("value").mean or 0.0))
        first = runs[0][0]
        offered = first.metrics.total.offered
        found.append(Group(first.requests, first.engine, first.score_rule, offered, tuple(found_rows)))
    return found, replaced
