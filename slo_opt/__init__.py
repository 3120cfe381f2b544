"""slo-opt: exact, certified and fast optimization of multi-SLO token scheduling for LLM serving."""

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError, SloOptError, SolverNotAvailableError, TraceFormatError
from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.domain.slo import ScoreRule, SloClass

__all__ = [
    "ENGINES",
    "Batch",
    "EngineModel",
    "Evaluation",
    "Instance",
    "InvalidInputError",
    "Request",
    "RooflinePiece",
    "Schedule",
    "ScoreRule",
    "SloClass",
    "SloOptError",
    "SolverNotAvailableError",
    "Stage",
    "TraceFormatError",
    "engine_named",
    "evaluate",
]
__version__ = "0.1.0"
