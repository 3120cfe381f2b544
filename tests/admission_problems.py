"""Raw random admission problems (every shape the contract allows), and the optimum by enumeration."""

from itertools import combinations

import numpy as np

from slo_opt.domain.admission import AdmissionProblem


def random_admission_problem(
    rng: np.random.Generator,
    num_candidates: int,
    num_running: int = 5,
    num_tiers: int = 3,
    *,
    memory_pressure: bool = False,
    num_pieces: int = 2,
    weighted: bool = False,
    mandatory_share: float = 0.0,
    tightness: float = 1.0,
) -> AdmissionProblem:
    """A random problem that satisfies the invariants of `AdmissionProblem`, not more.

    Parameters
    ----------
    num_running : int
        Running decodes, which take engine time and memory and leave one by one.
    tightness : float
        Total prefill work over the engine time to the last deadline, roughly.
    """
    count, tiers, pieces = num_candidates, num_tiers, num_pieces
    deadline_us = np.sort(rng.integers(0, 2_000_000, count))
    if count > 2 and rng.random() < 0.5:  # ties
        deadline_us[rng.integers(1, count)] = deadline_us[0]
        deadline_us.sort()
    horizon_us = (int(deadline_us[-1]) if count else 0) + int(rng.integers(0, 1_000_000))
    length_us = np.diff(np.concatenate(([0], deadline_us, [horizon_us])))

    tier = rng.integers(0, tiers, count)
    mean_us = tightness * max(1.0, float(deadline_us[-1]) if count else 1.0) / max(1, count)
    work_us = rng.integers(1, int(2 * mean_us) + 2, count)
    work_ps = np.stack([work_us * rng.integers(300_000, 1_000_000, count) for _ in range(pieces)])
    load_ppm = np.stack([rng.integers(0, 200_000 // (tier + 1) + 1) for _ in range(pieces)])

    leave = rng.random((pieces, num_running)) * 1.5 * max(1, horizon_us)
    share = rng.integers(0, 800_000 // max(1, num_running) + 1, (pieces, num_running))
    starts_us = np.concatenate(([0], deadline_us))
    overhead_ppm = np.sort(rng.integers(0, 400_000, (pieces, 1, tiers + 1)), axis=2)[:, :, ::-1]
    running_ppm = ((leave[:, None, :] > starts_us[None, :, None]) * share[:, None, :]).sum(axis=2)
    headroom_ppm = 1_000_000 - overhead_ppm - running_ppm[:, :, None]
    extra_ps = length_us[None, :, None] * rng.integers(0, 50_000, (pieces, count + 1, 1))
    supply_ps = length_us[None, :, None] * headroom_ppm + extra_ps

    blocks = rng.integers(1, 50, count)
    room = int(blocks.sum() * (0.5 if memory_pressure else 2.0)) + 1
    held = rng.integers(0, max(1, room // 2), count + 1)
    value = rng.integers(1, 10, count) if weighted else np.ones(count, dtype=np.int64)
    return AdmissionProblem(
        deadline_us=deadline_us.astype(np.int64),
        tier=tier.astype(np.int64),
        work_ps=work_ps.astype(np.int64),
        load_ppm=load_ppm.astype(np.int64),
        blocks=blocks.astype(np.int64),
        value=value.astype(np.int64),
        mandatory=rng.random(count) < mandatory_share,
        length_us=length_us.astype(np.int64),
        supply_ps=supply_ps.astype(np.int64),
        headroom_ppm=headroom_ppm.astype(np.int64),
        free_blocks=(room - held).astype(np.int64),
        ids=tuple(str(number) for number in range(count)),
    )


def random_problem_of_seed(seed: int, max_candidates: int = 10) -> AdmissionProblem:
    """A problem whose every trait is drawn from `seed`."""
    rng = np.random.default_rng(seed)
    return random_admission_problem(
        rng,
        int(rng.integers(0, max_candidates + 1)),
        int(rng.integers(0, 8)),
        int(rng.integers(1, 5)),
        memory_pressure=bool(rng.random() < 0.5),
        num_pieces=int(rng.integers(1, 4)),
        weighted=bool(rng.random() < 0.5),
        mandatory_share=float(rng.choice([0.0, 0.0, 0.1, 0.3])),
        tightness=float(rng.choice([0.5, 1.0, 2.0, 4.0])),
    )


def best_by_enumeration(problem: AdmissionProblem) -> tuple[int, ...] | None:
    """A most valuable feasible set, from `check` alone; None if there is none."""
    best: tuple[int, ...] | None = None
    for size in range(problem.num_candidates + 1):
        for chosen in combinations(range(problem.num_candidates), size):
            better = best is None or problem.total_value(chosen) > problem.total_value(best)
            if better and problem.check(chosen) is None:
                best = chosen
    return best
