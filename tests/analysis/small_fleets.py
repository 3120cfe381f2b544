"""Small instances that more than one replica serves better, and their exact relaxations at given fleets."""

import random
from collections.abc import Sequence
from dataclasses import replace

import highspy

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import ScoreRule
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fleet_highs import FleetModel, FleetTarget
from slo_opt.formulations.sparse_model import FloatArray, ModelArrays, row_multipliers
from slo_opt.traces.small import small_instance

RULES = list(ScoreRule)


def crowded(rng: random.Random, most: int = 10) -> Instance:
    """A few requests that arrive almost together, of any kind, at least one of them attainable."""
    while True:
        instance = small_instance(rng, max_requests=most, score_rule=rng.choice(RULES))
        hurried = tuple(replace(r, arrival_s=r.arrival_s * rng.choice([0.1, 0.1, 1.0])) for r in instance.requests)
        instance = instance.with_requests(tuple(sorted(hurried, key=lambda r: r.arrival_s)))
        if attainable_work(instance)[0]:
            return instance


def servable(instance: Instance) -> tuple[int, ...]:
    """Requests that an idle replica can attain."""
    return tuple(
        i
        for i, request in enumerate(instance.requests)
        if instance.value_of(request) > 0 and instance.unservable_reason(request) is None
    )


def target(instance: Instance, share: float) -> FleetTarget:
    """A share of the requests that can be attained, at least one."""
    who = servable(instance)
    return FleetTarget(who, max(1, round(share * len(who))))


def optimum(arrays: ModelArrays) -> tuple[float, FloatArray]:
    """Optimal value and row multipliers, by the simplex method."""
    highs = arrays.to_highs()
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return -highs.getObjectiveValue(), row_multipliers(highs)


def relaxed_value(model: FleetModel, counts: Sequence[float]) -> float:
    """What the relaxation attains with a fleet."""
    return optimum(model.value_problem(counts))[0]


def faster(engine: EngineModel, factor: float) -> EngineModel:
    """Another engine type: all times divided."""
    pieces = tuple(replace(p, per_token_s=p.per_token_s / factor, base_s=p.base_s / factor) for p in engine.pieces)
    return replace(
        engine,
        name=f"{engine.name}-faster",
        pieces=pieces,
        decode_context_s=engine.decode_context_s / factor,
        prefill_pair_s=engine.prefill_pair_s / factor,
        request_s=engine.request_s / factor,
        host_s=engine.host_s / factor,
    )
