"""Random legal schedules, and instances whose limits are exactly what such a schedule reaches."""

import random
from dataclasses import replace

from random_schedules import Job, RandomScheduler

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.schedule import Schedule
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.traces.small import small_instance

ENGINE = EngineModel(
    "bench",
    "made up: dear pairs and contexts, so that every term of the batch time weighs",
    pieces=(RooflinePiece(1e-5, 8e-3), RooflinePiece(6e-5, 1e-3)),
    decode_context_s=2e-6,
    prefill_pair_s=4e-7,
    request_s=2e-4,
    host_s=1e-3,
    kv_blocks=200,
    max_num_batched_tokens=256,
)


def tight_instance(rng: random.Random, *, crowded: bool = True) -> tuple[Instance, Schedule]:
    """An instance and a schedule that attains all it finishes, each token at the last moment or soon before.

    Preemption, chunks, rounds, phases, replicas and cached tokens occur; speculation does not.
    """
    instance = small_instance(rng, score_rule=rng.choice(list(ScoreRule)))
    if rng.random() < 0.6:
        instance = replace(instance, engine=replace(ENGINE, kv_blocks=rng.choice([60, 200])))
    if crowded:  # all at once: no idle time but what the scheduler leaves
        instance = instance.with_requests(tuple(replace(r, arrival_s=0.0) for r in instance.requests))
    instance = replace(instance, num_replicas=rng.choice([1, 1, 2]))
    scheduler = RandomScheduler(instance, rng, speculate=False, preempt=rng.random() < 0.5)
    schedule = Schedule.from_batches(scheduler.run())
    return _tightened(instance, scheduler.jobs), schedule


def _tightened(instance: Instance, jobs: list[Job]) -> Instance:
    """Limits that the finished requests just meet; the others get limits that nothing meets."""
    classes: dict[str, SloClass] = {}
    requests: list[Request] = []
    stretch = 1.05 if instance.score_rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
    for job in jobs:
        stages: list[Stage] = []
        clock_s = 0.0
        for s, stage in enumerate(job.request.stages):
            name = f"{job.request.id}-{s}"
            ttft_s = tpot_s = 1e-6
            if job.done:
                times_s = job.tokens_s[s]
                if stage.prompt_tokens:
                    ttft_s = max(1e-6, (times_s[0] - job.released_s[s]) / stretch)
                    clock_s, after = times_s[0], times_s[1:]
                else:
                    after = times_s
                if instance.score_rule is ScoreRule.MEAN_TPOT and after:
                    tpot_s = (after[-1] - clock_s) / len(after)
                else:
                    tpot_s = max([(time_s - clock_s) / n for n, time_s in enumerate(after, 1)], default=1e-3)
                clock_s += len(after) * tpot_s
                tpot_s = max(1e-6, tpot_s / stretch)
            classes[name] = SloClass(name, 1e3 * tpot_s * (1 + 1e-12), ttft_ms=1e3 * ttft_s * (1 + 1e-12))
            stages.append(replace(stage, slo=name))
        requests.append(Request(job.request.id, job.request.arrival_s, tuple(stages)))
    return replace(instance, requests=tuple(requests), slo_classes=classes)


def attained(instance: Instance, schedule: Schedule) -> list[int]:
    """Requests that the schedule attains; it must be legal."""
    outcome = evaluate(instance, schedule)
    assert outcome.violations == ()
    return [i for i, on_time in enumerate(outcome.attained) if on_time]
