"""Compile the kernels before the clock starts: on a fresh machine that takes longer than many a time limit."""

from functools import cache

from slo_opt.domain.engines import engine_named
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass


@cache
def tiny_instance() -> Instance:
    """Three requests of which one can be attained: every kernel has something to do, and next to nothing."""
    slo = SloClass("tiny", tpot_ms=50, ttft_ms=200)
    requests = tuple(Request(f"r{i}", 0.0, (Stage(1500, 3, "tiny"),)) for i in range(3))
    return Instance("tiny", requests, {"tiny": slo}, engine_named("opt-6.7b-a100"))
