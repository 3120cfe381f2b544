"""Short hashes that tell whether two results are about the same engine and the same requests."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def engine_hash(engine: EngineModel) -> str:
    """First 16 hex digits of the SHA-256 of the engine's figures, name and source left out."""
    return _digest({key: value for key, value in asdict(engine).items() if key not in ("name", "source")})


def requests_hash(instance: Instance) -> str:
    """The same of the requests as offered, arrivals included, and of the SLO classes that they name."""
    named = {stage.slo for request in instance.requests for stage in request.stages}
    rows = [
        [
            request.id,
            request.arrival_s,
            [[s.prompt_tokens, s.output_tokens, s.slo, s.cached_tokens, s.pause_s] for s in request.stages],
            *([] if request.prefix is None else [asdict(request.prefix)]),
        ]
        for request in instance.requests
    ]
    return _digest([rows, [asdict(instance.slo_classes[name]) for name in sorted(named)]])
