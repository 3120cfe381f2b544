"""Random plans against vLLM's real scheduler: does each batch equal its plan, and does every request get its tokens?

Run as a program, it prints the counts as JSON: ``python fidelity.py FOLDER STEPS SEED [MODE ...]``. So it also checks
other releases of vLLM, put on PYTHONPATH.
"""

import json
import random
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness import EngineSettings, Harness
from random_step_plans import random_step_plan

from slo_opt.engine_bridge.steering import Deviations, StepPlan, steered

TIGHT = EngineSettings(kv_blocks=96, max_num_seqs=24, max_num_batched_tokens=384, max_model_len=640)
CACHED = replace(TIGHT, prefix_caching=True, log_stats=True)

MODES: dict[str, EngineSettings] = {
    "sync": TIGHT,
    "sync, prefix cache": CACHED,
    "sync, speculation": replace(TIGHT, draft_tokens=4),
    "sync, speculation, prefix cache": replace(CACHED, draft_tokens=4),
    "sync, vLLM's priorities and long-prefill limit": replace(
        TIGHT, scheduling_policy="priority", long_prefill_tokens=16
    ),
    "two in flight": replace(TIGHT, asynchronous=True),
    "two in flight, prefix cache": replace(CACHED, asynchronous=True),
    "two in flight, speculation": replace(TIGHT, asynchronous=True, draft_tokens=3),
    "two in flight, speculation, prefix cache": replace(CACHED, asynchronous=True, draft_tokens=3),
    "two in flight, second model runner": replace(CACHED, asynchronous=True, v2_model_runner=True),
}


@dataclass(slots=True)
class FidelityRun:
    """Counts of one run.

    Parameters
    ----------
    mode : str
        One of `MODES`.
    steps, planned_steps : int
        Steps in all, and those under a plan; the others were vLLM's own.
    planned_tokens, prefills, decodes, drafts, preemptions : int
        What the plans contained.
    aborts, requests : int
        Requests whose client went away, and requests in all.
    cached : int
        Planned prefills that ended early, since the prefix cache held more than when the plan was made.
    deviations : dict of str to int
        By kind.
    leaked_blocks, wrong_requests : int
        KV blocks not free at the end, requests that did not get exactly their tokens.
    """

    mode: str
    steps: int = 0
    planned_steps: int = 0
    planned_tokens: int = 0
    prefills: int = 0
    decodes: int = 0
    drafts: int = 0
    preemptions: int = 0
    aborts: int = 0
    requests: int = 0
    cached: int = 0
    deviations: dict[str, int] = field(default_factory=dict)
    leaked_blocks: int = 0
    wrong_requests: int = 0

    @property
    def clean(self) -> bool:
        """Whether every plan was followed and nothing was lost."""
        return not self.deviations and not self.leaked_blocks and not self.wrong_requests


def planning(base: type) -> type:
    """A scheduler that follows the plan put into `plan`, and keeps what it is told."""

    class Planning(steered(base)):  # type: ignore[misc]
        plan: StepPlan | None = None
        told: Deviations | None = None

        def next_plan(self) -> StepPlan | None:
            return self.plan

        def scheduled(self, plan: StepPlan, output: object, deviations: Deviations) -> None:
            self.told = deviations

        def steering_failed(self, where: str, error: Exception) -> None:
            raise error

    return Planning


def run_mode(folder: Path, mode: str, steps: int, seed: int, make=planning) -> FidelityRun:
    """At least `steps` planned steps under load, then vLLM's own until all requests are done."""
    rng = random.Random(seed)
    harness = Harness(folder, MODES[mode], make, seed=seed)
    scheduler = harness.scheduler
    run = FidelityRun(mode)
    stems = [_stem(rng) for _ in range(4)]
    while run.planned_steps < steps or scheduler.has_unfinished_requests():
        if run.planned_steps < steps and scheduler.get_num_unfinished_requests() < 40 and rng.random() < 0.5:
            _arrive(harness, rng, stems, run)
        if rng.random() < 0.02 and scheduler.requests:
            harness.abort(rng.choice(sorted(scheduler.requests)))
            run.aborts += 1
        own = rng.random() < 0.1
        scheduler.plan = None if own else random_step_plan(scheduler, rng)
        scheduler.told = None
        before = {name: one.num_computed_tokens for name, one in scheduler.requests.items()}
        output = harness.step()
        run.steps += 1
        if run.steps > 20 * steps + 2000:
            raise AssertionError(f"{mode}: requests that never end: {sorted(scheduler.requests)}")
        if scheduler.plan is not None:
            _count(run, scheduler.plan, output, scheduler.told, before)
    harness.drain()
    run.requests = len(harness.ledgers)
    run.leaked_blocks = harness.settings.kv_blocks - scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    for ledger in harness.ledgers.values():
        whole = ledger.finish_reason == "length" and len(ledger.received) == ledger.max_tokens
        run.wrong_requests += not (whole or ledger.finish_reason == "abort")
    return run


def _stem(rng: random.Random) -> list[int]:
    """A prefix that several prompts share."""
    return [rng.randrange(100) for _ in range(rng.randint(16, 200))]


def _arrive(harness: Harness, rng: random.Random, stems: list[list[int]], run: FidelityRun) -> None:
    name = f"r{len(harness.ledgers)}"
    prompt = [rng.randrange(100) for _ in range(rng.choice([1, 5, 40, 200]))]
    if rng.random() < 0.2:
        stems[rng.randrange(len(stems))] = _stem(rng)
    if rng.random() < 0.6:
        stem = rng.choice(stems)
        prompt = stem[: rng.randint(1, len(stem))] + prompt
    if rng.random() < 0.2:
        prompt = [*prompt[: max(len(prompt) // 16 * 16, 1)], 1]  # all but one token may be cached
    output_tokens = min(rng.choice([1, 2, 8, 60]), harness.settings.max_model_len - len(prompt))
    harness.add(name, prompt, output_tokens, priority=rng.randint(0, 2))


def _count(run: FidelityRun, plan: StepPlan, output, told: Deviations | None, before: dict[str, int]) -> None:
    run.planned_steps += 1
    run.preemptions += len(plan.preempt)
    if told is None:
        run.deviations["not told"] = run.deviations.get("not told", 0) + 1
        return
    run.cached += len(told.cached)
    for kind, count in told.counts().items():
        run.deviations[kind] = run.deviations.get(kind, 0) + count
    # Counted from vLLM's output, not from what the steering says of it.
    scheduled = output.num_scheduled_tokens
    differing = {name for name, tokens in plan.tokens if scheduled.get(name) != tokens} - set(told.cached)
    differing |= set(scheduled) - {name for name, _ in plan.tokens}
    if bool(differing) != bool(set(told.counts()) - {"preempted"}):
        run.deviations["told wrongly"] = run.deviations.get("told wrongly", 0) + 1
    drafts = output.scheduled_spec_decode_tokens
    for name, tokens in plan.tokens:
        run.planned_tokens += tokens
        run.drafts += len(drafts.get(name, ()))
        if tokens == 1 + len(drafts.get(name, ())) and before.get(name):
            run.decodes += 1
        else:
            run.prefills += 1


def main(arguments: list[str]) -> None:
    folder, steps, seed, *modes = arguments
    import vllm

    Path(folder).mkdir(parents=True, exist_ok=True)
    runs = [asdict(run_mode(Path(folder), mode, int(steps), int(seed))) for mode in modes or MODES]
    print("RESULT " + json.dumps({"vllm": getattr(vllm, "__version__", "unknown"), "runs": runs}))


if __name__ == "__main__":
    main(sys.argv[1:])
