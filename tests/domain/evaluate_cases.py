"""Engines and instances with figures that a reader can add up in the head."""

from dataclasses import replace
from typing import Any

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.domain.slo import ScoreRule, SloClass

# A batch takes 10 s and 1 s a token.
PLAIN = EngineModel("plain", "made up", (RooflinePiece(1.0, 10.0),), block_size_tokens=4, kv_blocks=100)
# TTFT 100 s, TPOT 20 s; a tighter one for thinking; best effort.
CLASSES = {
    "main": SloClass("main", tpot_ms=20_000, ttft_ms=100_000),
    "quick": SloClass("quick", tpot_ms=12_000, ttft_ms=50_000, weight=3.0),
    "spare": SloClass("spare", tpot_ms=1, ttft_ms=1, best_effort=True),
}


def plain_instance(*requests: Request, rule: ScoreRule = ScoreRule.DSLO, replicas: int = 1, **engine: Any) -> Instance:
    """An instance on the plain engine, some of its fields replaced."""
    return Instance("case", requests, CLASSES, replace(PLAIN, **engine), rule, replicas)


def request(name: str, arrival_s: float, *stages: Stage) -> Request:
    """A request."""
    return Request(name, arrival_s, stages)


def batch(start_s: float, entries: dict[int, int], **more: Any) -> Batch:
    """A batch from request index to tokens."""
    return Batch(start_s, list(entries), list(entries.values()), **more)


def replayed(instance: Instance, *batches: Batch) -> Evaluation:
    """The evaluation of batches."""
    return evaluate(instance, Schedule.from_batches(batches))


def rules(outcome: Evaluation) -> list[str]:
    """Names of the rules broken, each once."""
    return sorted({violation.rule for violation in outcome.violations})
