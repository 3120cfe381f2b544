"""Requests under no SLO: online policies serve them with left-over tokens, offline plans leave them out."""

from dataclasses import replace

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import SloClass
from slo_opt.traces.scenarios import checked_seed
from slo_opt.traces.trace import Trace

BEST_EFFORT = SloClass("best-effort", tpot_ms=1_000, ttft_ms=60_000, best_effort=True)


def with_best_effort(trace: Trace, share: float, seed: int = 0) -> Trace:
    """The trace with a share of its requests, drawn by the seed, moved to the class ``best-effort``.

    Raises
    ------
    InvalidInputError
        The share is not in [0, 1], or the trace has another class of that name.
    """
    if not 0 <= share <= 1:
        raise InvalidInputError(f"best-effort share is {share}; expected a number in [0, 1]")
    if trace.slo_classes.get(BEST_EFFORT.name, BEST_EFFORT) != BEST_EFFORT:
        raise InvalidInputError(f"{trace.name}: has another SLO class named {BEST_EFFORT.name!r}; rename it")
    moved = np.random.default_rng([checked_seed(seed), 1]).random(len(trace.requests)) < share
    requests = tuple(
        replace(request, stages=tuple(replace(stage, slo=BEST_EFFORT.name) for stage in request.stages))
        if move
        else request
        for request, move in zip(trace.requests, moved.tolist(), strict=True)
    )
    classes = {**trace.slo_classes, BEST_EFFORT.name: BEST_EFFORT}
    return replace(
        trace,
        requests=requests,
        slo_classes=classes,
        provenance={**trace.provenance, "best_effort_share": share},
    )
