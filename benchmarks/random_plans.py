"""Random admission plans of every kind, by seed: what the cross-check and its tests run on."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.engines import ENGINES
from slo_opt.domain.plan import admission_problem
from slo_opt.domain.speculation import best_draft_lengths
from slo_opt.traces.snapshots import TIERS_S, SnapshotShape, random_snapshot


@dataclass(frozen=True, slots=True)
class RandomPlan:
    """A problem and the traits it was drawn with.

    Parameters
    ----------
    seed : int
        Gives the same plan again.
    problem : AdmissionProblem
        The integers.
    traits : dict of str to str
        Engine, counts, and which features are present.
    """

    seed: int
    problem: AdmissionProblem
    traits: dict[str, str]


def random_plan(seed: int, max_candidates: int = 10) -> RandomPlan:
    """Draw a snapshot and everything around it.

    Engine, 0 to `max_candidates` candidates, 0 to 24 running decodes, 1 to 4 tiers, free deadlines or ones that follow
    from the prompt, values, mandatory candidates, departures, memory at peak or growing and scarce or not, with or
    without speculation (lengths as `best_draft_lengths` chooses them for the running decodes).
    """
    rng = np.random.default_rng(seed)
    engine = ENGINES[str(rng.choice(sorted(ENGINES)))]
    speculative = bool(rng.random() < 0.3)
    if speculative:
        share = float(rng.uniform(0.02, 0.2))
        pieces = tuple(dataclasses.replace(piece, per_draft_step_s=share * piece.base_s) for piece in engine.pieces)
        engine = dataclasses.replace(engine, pieces=pieces)
    shape = SnapshotShape(
        num_candidates=int(rng.integers(0, max_candidates + 1)),
        num_running=int(rng.integers(0, 25)),
        num_tiers=int(rng.integers(1, 5)),
        overload=float(rng.choice([0.8, 1.5, 2.5, 5.0])),
        proportional_share=float(rng.choice([0.0, 0.5, 1.0])),
        known_departures=float(rng.choice([0.0, 0.5, 1.0])),
        mandatory_share=float(rng.choice([0.0, 0.0, 0.0, 0.1, 0.25])),
        weighted=bool(rng.random() < 0.5),
    )
    snapshot = random_snapshot(rng, engine, shape)
    memory = "growth" if rng.random() < 0.5 else "peak"
    scarce = bool(rng.random() < 0.5)
    wanted = sum(engine.kv_blocks_for(c.prefill_tokens + c.output_tokens) for c in snapshot.candidates)
    held = sum(engine.kv_blocks_for(d.context_tokens + (d.remaining_tokens or 0)) for d in snapshot.decoding)
    capacity = held + int(wanted * rng.uniform(0.1, 0.9)) + 1 if scarce else engine.kv_blocks
    acceptance = float(rng.uniform(0.4, 0.9)) if speculative else 0.0
    lengths: tuple[int, ...] = (1,) * len(TIERS_S)
    if speculative:
        counts = [sum(d.tpot_s == tpot_s for d in snapshot.decoding) for tpot_s in TIERS_S]
        lengths = best_draft_lengths(engine, TIERS_S, counts, acceptance, 5)
    problem = admission_problem(
        snapshot,
        engine,
        kv_blocks=capacity,
        memory="growth" if memory == "growth" else "peak",
        draft_lengths=dict(zip(TIERS_S, lengths, strict=True)),
        acceptance=acceptance,
        horizon_s=float(rng.choice([0.0, 1.0, 5.0])),
    )
    traits = {
        "engine": engine.name,
        "candidates": str(shape.num_candidates),
        "tiers": str(shape.num_tiers),
        "deadlines": {0.0: "free", 0.5: "mixed", 1.0: "proportional"}[shape.proportional_share],
        "departures": {0.0: "unknown", 0.5: "some", 1.0: "all"}[shape.known_departures],
        "mandatory": "yes" if problem.mandatory.any() else "no",
        "values": "weighted" if shape.weighted else "counted",
        "memory": f"{memory}, {'scarce' if scarce else 'ample'}",
        "speculation": "yes" if speculative else "no",
    }
    return RandomPlan(seed, problem, traits)


def best_value(problem: AdmissionProblem) -> int | None:
    """Optimum by depth-first enumeration with `AdmissionProblem.check` alone; None if nothing is feasible.

    A set that fails makes all its supersets fail, except for the rule on mandatory candidates; so only sets without
    failure are extended.
    """
    count = problem.num_candidates
    free = dataclasses.replace(problem, mandatory=np.zeros(count, dtype=np.bool_))
    needed = {j for j in range(count) if problem.mandatory[j]}
    best: int | None = None
    stack: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while stack:
        start, chosen = stack.pop()
        if needed.issubset(chosen):
            value = problem.total_value(chosen)
            best = value if best is None else max(best, value)
        for j in range(start, count):
            extended = (*chosen, j)
            if free.check(extended) is None:
                stack.append((j + 1, extended))
    return best
