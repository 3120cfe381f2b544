"""Random states of one serving replica, for tests and benchmarks of the admission plan."""

import math
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding

TIERS_S = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class SnapshotShape:
    """What a random snapshot looks like.

    Parameters
    ----------
    num_candidates, num_running : int
        Requests to decide on, decodes in flight.
    num_tiers : int
        Tiers of `TIERS_S` in use, from the tightest (at most 4).
    overload : float
        Prefill work of all candidates over what the engine can do until the last deadline, roughly.
    running_tiers : int or None
        Tiers that the running decodes use, the loosest ones; None draws it, 0 excluded.
    prompt_median_tokens, output_median_tokens : float
        Medians of the lognormal lengths.
    proportional_share : float
        Share of candidates whose deadline follows from their length (slowdown over the zero-load TTFT) and an arrival
        in the recent past; the rest have free deadlines.
    known_departures : float
        Share of running decodes whose remaining tokens are known.
    mandatory_share : float
        Share of candidates that are running prefills, admitted before.
    weighted : bool
        Values drawn from 1, 2, 4; otherwise all 1.
    """

    num_candidates: int
    num_running: int
    num_tiers: int = 3
    overload: float = 1.5
    running_tiers: int | None = None
    prompt_median_tokens: float = 800.0
    output_median_tokens: float = 150.0
    proportional_share: float = 0.5
    known_departures: float = 0.5
    mandatory_share: float = 0.0
    weighted: bool = False


def random_snapshot(rng: np.random.Generator, engine: EngineModel, shape: SnapshotShape) -> AdmissionSnapshot:
    """A state of a replica of `engine`; the same generator state gives the same snapshot.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    engine : EngineModel
        Sizes prompts (context limit), deadlines (zero-load TTFT) and the horizon.
    shape : SnapshotShape
        Counts and distributions.
    """
    tiers_s = TIERS_S[: shape.num_tiers]
    present = shape.running_tiers or int(rng.integers(1, shape.num_tiers + 1))
    decoding = []
    for number in range(shape.num_running):
        output = _length(rng, shape.output_median_tokens, engine.max_model_len // 4)
        remaining = int(rng.integers(1, output + 1)) if rng.random() < shape.known_departures else None
        context = _length(rng, shape.prompt_median_tokens, engine.max_model_len // 2) + output
        tpot_s = tiers_s[int(rng.integers(shape.num_tiers - present, shape.num_tiers))]
        decoding.append(Decoding(f"running-{number}", tpot_s, context, remaining))

    prompts = [_length(rng, shape.prompt_median_tokens, engine.max_model_len // 2) for _ in range(shape.num_candidates)]
    alone_s = [engine.zero_load_ttft_s(prompt) for prompt in prompts]
    spread_s = sum(alone_s) / shape.overload
    candidates = []
    for number, (prompt, least_s) in enumerate(zip(prompts, alone_s, strict=True)):
        if rng.random() < shape.proportional_share:
            due_s = float(rng.choice([3.0, 5.0])) * least_s + float(rng.uniform(0.0, spread_s))
        else:
            due_s = float(rng.uniform(least_s, max(spread_s, 2 * least_s)))
        candidates.append(
            Candidate(
                id=f"new-{number}",
                due_s=due_s,
                tpot_s=tiers_s[int(rng.integers(shape.num_tiers))],
                prefill_tokens=prompt,
                output_tokens=_length(rng, shape.output_median_tokens, engine.max_model_len // 4),
                value=float(rng.choice([1.0, 2.0, 4.0])) if shape.weighted else 1.0,
                mandatory=bool(rng.random() < shape.mandatory_share),
            )
        )
    return AdmissionSnapshot(0.0, tuple(decoding), tuple(candidates))


def _length(rng: np.random.Generator, median: float, most: int) -> int:
    return max(1, min(most, round(median * math.exp(0.8 * float(rng.standard_normal())))))
