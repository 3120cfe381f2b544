"""Seeded synthetic traces with the statistics of a published workload."""

import zlib
from dataclasses import replace

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.arrivals import arrival_times, arrivals_named
from slo_opt.traces.best_effort import with_best_effort
from slo_opt.traces.engine_file import portable
from slo_opt.traces.profiles import Profile, profile_named
from slo_opt.traces.rows import RawTrace, Row, Scalar
from slo_opt.traces.scenarios import SCENARIOS, apply_scenario, checked_seed, scenario_named
from slo_opt.traces.trace import Trace
from slo_opt.traces.transforms import by_arrival


def generate(
    workload: str,
    *,
    rate: float | None = None,
    duration_s: float = 300.0,
    seed: int = 0,
    engine: str | EngineModel | None = None,
    scenario: str | None = None,
    arrivals: str | None = None,
    best_effort: float = 0.0,
    name: str | None = None,
) -> Trace:
    """Draw a trace.

    Parameters
    ----------
    workload : str
        A profile, or a scenario: then its published workload. ``mixed`` is five workloads of equal rate, merged.
    rate : float, optional
        Requests a second; the workload's own if not given.
    duration_s : float
        Arrivals lie in ``[0, duration_s)``.
    seed : int
        Equal arguments and seeds give equal traces (for one version of numpy).
    engine : str or EngineModel, optional
        Lengths over its context are drawn again.
    scenario : str, optional
        SLOs to assign; those that suit the workload if not given.
    arrivals : str, optional
        ``poisson``, ``bursty`` or ``gamma:CV`` instead of the workload's own.
    best_effort : float
        Share of the requests made best effort.
    name : str, optional
        Of the trace.

    Returns
    -------
    Trace
        With profile, rate, duration, seed and sources in the provenance.

    Raises
    ------
    InvalidInputError
        Unknown names, a rate, duration or share that makes no sense, or no arrival falls in the duration.
    """
    checked_seed(seed)
    engine = portable(engine)
    model = engine_named(engine) if isinstance(engine, str) else engine
    parts = list(SCENARIOS["mixed"].parts) if workload == "mixed" else [workload]
    profiles = [profile_named(part) for part in parts]
    total = sum(profile.rate for profile in profiles) if rate is None else rate
    chosen = scenario or (workload if workload in SCENARIOS else profiles[0].scenario)
    labelled = len(parts) > 1 and chosen == "mixed"
    scenario_named(chosen)
    rows: list[Row] = []
    for part, profile in zip(parts, profiles, strict=True):
        share = total / len(parts) if rate is not None else profile.rate
        drawn = _rows(profile, share, duration_s, seed, model, arrivals)
        rows += [replace(row, id=f"{part}-{row.id}", slo=part if labelled else None) for row in drawn]
    if not rows:
        raise InvalidInputError(
            f"no request arrives within {duration_s} s at {total} requests/s; raise one, or change the seed"
        )
    facts: dict[str, Scalar] = {
        "generator": "slo-opt trace generate",
        "workload": workload,
        "statistics": "; ".join(dict.fromkeys(profile.source for profile in profiles)),
        "arrivals": arrivals or "of the workload",
        "rate": total,
        "duration_s": duration_s,
        "numpy": ".".join(np.__version__.split(".")[:2]),
    }
    raw = RawTrace(workload, name or workload, by_arrival(rows), facts)
    trace = apply_scenario(raw, chosen, engine, seed)
    return with_best_effort(trace, best_effort, seed) if best_effort else trace


def _rows(
    profile: Profile, rate: float, duration_s: float, seed: int, model: EngineModel | None, arrivals: str | None
) -> list[Row]:
    """Rows of one profile, drawn from a stream of its own."""
    rng = np.random.default_rng([seed, zlib.crc32(profile.name.encode())])
    process = profile.arrivals if arrivals is None else arrivals_named(arrivals)
    times = arrival_times(process, rate, duration_s, rng)
    prompts, outputs = profile.lengths.sample(len(times), rng, None if model is None else model.max_model_len)
    columns = zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return [Row(str(k), time_s, prompt, output, line=k + 1) for k, (time_s, prompt, output) in enumerate(columns)]
