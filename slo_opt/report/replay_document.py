"""A replay as one JSON object: the fields of a simulated run where they mean the same."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slo_opt.analysis.origin import Origin
from slo_opt.analysis.runs import software_versions
from slo_opt.domain.fingerprint import engine_hash, requests_hash
from slo_opt.replay.call import Outcome
from slo_opt.replay.result import ReplayRun
from slo_opt.traces.source import load

SCHEMA = "slo-opt-replay-run"
SCHEMA_VERSION = 1
NUM_CAUSES = 5


def replay_document(run: ReplayRun, origin: Origin, label: str) -> dict[str, Any]:
    """Everything a reader needs to trust, repeat and compare the run; plain JSON types.

    Parameters
    ----------
    run : ReplayRun
        The outcome.
    origin : Origin
        Where the requests came from.
    label : str
        What served, in the place of a simulated run's policy.
    """
    instance, metrics = run.instance, run.metrics()
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "policy": label,
        "score_rule": instance.score_rule.value,
        "engine": {"name": instance.engine.name, "hash": engine_hash(instance.engine)},
        "requests": {"name": instance.name, "hash": requests_hash(instance)},
        "trace": asdict(origin),
        "limits": {row.name: instance.slo_classes[row.name].limits() for row in metrics.classes},
        "server": {"url": run.server.base_url, "model": run.server.model},
        "replay": {**asdict(run.options), "model": run.server.model, "began_unix_s": round(run.began_unix_s, 3)},
        "metrics": metrics.to_dict(),
        "refused": _causes(run, Outcome.REFUSED),
        "failed": _causes(run, Outcome.FAILED),
        "wall_s": round(run.wall_s, 3),
        "versions": software_versions(),
    }


def _causes(run: ReplayRun, outcome: Outcome) -> list[dict[str, Any]]:
    return [{"cause": cause, "requests": count} for cause, count in run.causes(outcome)[:NUM_CAUSES]]


def check_appendable(path: Path) -> None:
    """Refuse to add a replay to a file that holds something else.

    Raises
    ------
    TraceFormatError
        A line is no replay: file and line are named.
    """
    if not (path.is_file() and path.stat().st_size):
        return
    source = load(path, "replay")
    for number, line in enumerate(source.text.splitlines(), start=1):
        if line.strip() and not _is_replay(line):
            raise source.error(number, "is no replay", "Remove the line, or name another file for -o.")


def _is_replay(line: str) -> bool:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("schema") == SCHEMA
