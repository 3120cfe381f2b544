"""A small real scheduler for tests: decodes first, then prefill by deadline; hopeless requests are declined."""

import time

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.evaluate import evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Batch, Schedule
from slo_opt.solvers.interface import ObjectiveBounds, ScheduleResult, SolverConfig, SolveStats, Termination


def greedy_schedule(instance: Instance) -> Schedule:
    """Batches on replica 0, one after another; single-stage requests only."""
    engine = instance.engine
    waiting = list(range(len(instance.requests)))
    left = {i: request.stages[0].prompt_tokens for i, request in enumerate(instance.requests)}
    decoding: dict[int, int] = {}
    held: dict[int, int] = {}
    batches: list[Batch] = []
    admitted: list[int] = []
    now_s = 0.0

    def due_s(i: int) -> float:
        request = instance.requests[i]
        return request.arrival_s + instance.ttft_limit_s(request.stages[0])

    while waiting or decoding:
        ready = sorted((i for i in waiting if instance.requests[i].arrival_s <= now_s), key=due_s)
        for i in list(ready):
            if now_s + engine.zero_load_ttft_s(left[i]) > due_s(i):
                ready.remove(i)
                waiting.remove(i)
                held.pop(i, None)
        if not ready and not decoding:
            if not waiting:
                break
            now_s = max(now_s, min(instance.requests[i].arrival_s for i in waiting))
            continue
        tightest_s = min((instance.tpot_s(instance.requests[i].stages[0]) for i in decoding), default=0.2)
        budget = max(engine.max_tokens_within(tightest_s) - len(decoding), 0 if decoding else 256)
        chosen = [(i, 1) for i in decoding]
        for i in ready:
            peak = engine.kv_blocks_for(instance.requests[i].prompt_tokens + instance.requests[i].output_tokens)
            if i not in held and sum(held.values()) + peak > engine.kv_blocks:
                continue
            if budget <= 0 or len(chosen) >= engine.max_num_seqs:
                break
            if i not in held:
                admitted.append(i)
            held[i] = peak
            chosen.append((i, min(left[i], budget)))
            budget -= chosen[-1][1]
        if not chosen:
            now_s = min(instance.requests[i].arrival_s for i in waiting if instance.requests[i].arrival_s > now_s)
            continue
        past = {i: instance.requests[i].prompt_tokens - left[i] for i, _ in chosen}
        duration_s = engine.batch_time_s(
            sum(tokens for _, tokens in chosen),
            decode_context_tokens=sum(instance.requests[i].prompt_tokens + decoding[i] - 1 for i in decoding),
            prefill_pairs=sum(prefill_pairs(tokens, past[i]) for i, tokens in chosen if i not in decoding),
            num_requests=len(chosen),
        )
        batches.append(Batch(now_s, [i for i, _ in chosen], [tokens for _, tokens in chosen]))
        now_s += duration_s
        for i, tokens in chosen:
            if i in decoding:
                decoding[i] += 1
            else:
                left[i] -= tokens
                if left[i]:
                    continue
                waiting.remove(i)
                decoding[i] = 1
            if decoding[i] == instance.requests[i].output_tokens:
                del decoding[i], held[i]
    return Schedule.from_batches(batches, admitted)


class GreedySolver:
    """`greedy_schedule` behind the solver interface."""

    name = "greedy"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """One pass; it proves nothing."""
        started_s = time.perf_counter()
        if config.progress is not None:
            config.progress("greedy", 0.0)
        schedule = greedy_schedule(instance)
        bounds = ObjectiveBounds(primal=evaluate(instance, schedule).value)
        stats = SolveStats(time.perf_counter() - started_s, {"greedy": "1"}, {"batches": len(schedule)})
        return ScheduleResult(Termination.OTHER_LIMIT, schedule, bounds, stats)


class EngineTimeBound:
    """A valid bound: the requests with the cheapest prompts, as many as fit from first arrival to last deadline."""

    name = "engine-time"

    def solve(self, instance: Instance, config: SolverConfig) -> ScheduleResult:
        """Fractional knapsack of prefill time at the cheapest slope; unit weights."""
        requests = [request for request in instance.requests if instance.value_of(request) > 0]
        slope_s = max(piece.per_token_s for piece in instance.engine.pieces)
        ends = [request.arrival_s + instance.ttft_limit_s(request.stages[0]) for request in requests]
        left_s = (max(ends) - requests[0].arrival_s) * instance.num_replicas
        bound = 0.0
        for cost_s in sorted(slope_s * request.stages[0].prompt_tokens for request in requests):
            taken = min(1.0, left_s / cost_s)
            bound += taken
            left_s -= taken * cost_s
            if left_s <= 0:
                break
        stats = SolveStats(0.0, {"engine-time": "1"})
        return ScheduleResult(Termination.OPTIMAL, None, ObjectiveBounds(dual=bound), stats)
