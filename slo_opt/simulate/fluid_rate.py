"""A rough rate that an engine can sustain: where a search for the capacity begins."""

import math

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import Instance

_UNEVEN = 0.7  # of the fluid rate: arrivals come in bursts, batches do not fill exactly


def fluid_rate(instance: Instance) -> float:
    """Requests a second at which the engine's time, its KV blocks or its batch slots are used up.

    Every batch lasts the tightest TPOT and is full; each token costs what the engine model says, a request holds its
    blocks while it decodes at that pace. The least of three ratios, times 0.7. An estimate, not a bound.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 3 (fluid form of the budget).
    """
    engine = instance.engine
    tightest_s = min(instance.tpot_s(stage) for request in instance.requests for stage in request.stages)
    step_s = max(tightest_s, 1.5 * engine.batch_time_s(1))  # some class may be out of reach
    budget = max(engine.max_tokens_within(step_s), 1)
    full_s = engine.batch_time_s(budget)
    work_s = seconds = block_seconds = 0.0
    for request in instance.requests:
        for stage in request.stages:
            tokens = stage.prompt_tokens + stage.output_tokens
            context = stage.cached_tokens + stage.prompt_tokens + stage.output_tokens / 2
            work_s += tokens * full_s / budget
            work_s += engine.decode_context_s * stage.output_tokens * context
            work_s += engine.prefill_pair_s * prefill_pairs(stage.prompt_tokens, stage.cached_tokens)
            held_s = (stage.output_tokens + 1) * max(step_s, full_s)
            seconds += held_s
            block_seconds += held_s * context / engine.block_size_tokens
    count = len(instance.requests)
    rates = (
        count / work_s,
        engine.max_num_seqs * count / seconds,
        engine.kv_blocks * count / block_seconds if block_seconds else math.inf,
    )
    return _UNEVEN * min(rates)
