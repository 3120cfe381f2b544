"""An instance as flat arrays that the compiled kernel reads."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule

DSLO, MEAN_TPOT, FIRST_LATE_SHIFTS = 0, 1, 2
_RULES = {ScoreRule.DSLO: DSLO, ScoreRule.MEAN_TPOT: MEAN_TPOT, ScoreRule.FIRST_LATE_SHIFTS: FIRST_LATE_SHIFTS}


class Problem(NamedTuple):
    """Requests ``0..N-1`` in order of arrival, their ``S`` stages one after another, and the engine.

    Parameters
    ----------
    arrival_s, value : (N,) float arrays
    first_stage : (N + 1,) int array
        Stages of request ``i`` are ``first_stage[i]..first_stage[i + 1] - 1``.
    prompt_tokens, output_tokens, cached_tokens : (S,) int arrays
    tail_tokens : (S,) int array
        Output tokens of the stages that continue this one before KV is released.
    pause_s, limit_s, tpot_s : (S,) float arrays
        Limits as the score rule stretches them for tokens after the first; `limit_s` is never stretched.
    first_limit_s : (S,) float array
        Time from release to the latest attained first token.
    slope_s, base_s : (L,) float arrays
        Pieces of the batch time.
    decode_context_s, prefill_pair_s, request_s, host_s : float
    block_size_tokens, kv_blocks, max_num_batched_tokens, max_num_seqs : int
    rule : int
        Score rule.
    """

    arrival_s: NDArray[np.float64]
    value: NDArray[np.float64]
    first_stage: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    tail_tokens: NDArray[np.int64]
    pause_s: NDArray[np.float64]
    limit_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    first_limit_s: NDArray[np.float64]
    slope_s: NDArray[np.float64]
    base_s: NDArray[np.float64]
    decode_context_s: float
    prefill_pair_s: float
    request_s: float
    host_s: float
    block_size_tokens: int
    kv_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    rule: int


def encode(instance: Instance) -> Problem:
    """Flatten an instance; requests that no schedule can attain, and best effort, get the value 0."""
    engine = instance.engine
    late = instance.score_rule is ScoreRule.FIRST_LATE_SHIFTS
    stretch = TTFT_TOLERANCE if late else 1.0
    stages = [stage for request in instance.requests for stage in request.stages]
    tails = np.zeros(len(stages), dtype=np.int64)
    for s in range(len(stages) - 2, -1, -1):
        if stages[s + 1].prompt_tokens == 0:
            tails[s] = stages[s + 1].output_tokens + tails[s + 1]
    limits = [instance.ttft_limit_s(stage) if stage.prompt_tokens else 0.0 for stage in stages]

    def ints(values: list[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    def floats(values: list[float]) -> NDArray[np.float64]:
        return np.array(values, dtype=np.float64)

    counts = [len(request.stages) for request in instance.requests]
    return Problem(
        arrival_s=floats([request.arrival_s for request in instance.requests]),
        value=floats(
            [
                0.0 if instance.unservable_reason(request) else instance.value_of(request)
                for request in instance.requests
            ]
        ),
        first_stage=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        prompt_tokens=ints([stage.prompt_tokens for stage in stages]),
        output_tokens=ints([stage.output_tokens for stage in stages]),
        cached_tokens=ints([stage.cached_tokens for stage in stages]),
        tail_tokens=tails,
        pause_s=floats([stage.pause_s for stage in stages]),
        limit_s=floats(limits),
        tpot_s=floats([instance.tpot_s(stage) * stretch for stage in stages]),
        first_limit_s=floats([limit * stretch for limit in limits]),
        slope_s=floats([piece.per_token_s for piece in engine.pieces]),
        base_s=floats([piece.base_s for piece in engine.pieces]),
        decode_context_s=engine.decode_context_s,
        prefill_pair_s=engine.prefill_pair_s,
        request_s=engine.request_s,
        host_s=engine.host_s,
        block_size_tokens=engine.block_size_tokens,
        kv_blocks=engine.kv_blocks,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        rule=_RULES[instance.score_rule],
    )


def request_cost_s(problem: Problem, sharing: float) -> NDArray[np.float64]:
    """Rough engine time of each request: its tokens, and a batch overhead shared by `sharing` requests a step.

    Returns
    -------
    (N,) float array
        Seconds; ranks requests, proves nothing.
    """
    slope, base = float(problem.slope_s.max()), float(problem.base_s.max()) + problem.host_s
    prompt, output = problem.prompt_tokens.astype(float), problem.output_tokens.astype(float)
    past = problem.cached_tokens.astype(float)
    prefill = prompt * slope + problem.prefill_pair_s * prompt * (past + (prompt + 1) / 2)
    decode = output * (slope + problem.request_s + base / sharing)
    decode += output * (past + prompt + output / 2) * problem.decode_context_s
    return np.add.reduceat(prefill + decode, problem.first_stage[:-1])
