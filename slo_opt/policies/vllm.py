"""vLLM's own scheduler, first come first served or by priority."""

from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext


class VllmPolicy:
    """The rules of vLLM's V1 scheduler with chunked prefill.

    Running requests first, in the order in which they began, then the queue, until the token budget is spent. Where KV
    is short the last of the running is preempted by recompute and nobody new starts in that step. A request starts only
    if KV is free for all its tokens so far, and holds back those behind it if not.

    Parameters
    ----------
    budget_tokens : int
        `max_num_batched_tokens`.
    long_prefill_tokens : int or None
        `long_prefill_token_threshold`: no request prefills more in one step, unless it is alone.

    References
    ----------
    vLLM, ``vllm/v1/core/sched/scheduler.py``, release 0.32.
    """

    name = "vllm-fcfs"

    def __init__(
        self, context: PolicyContext, budget_tokens: int = 2048, long_prefill_tokens: int | None = None
    ) -> None:
        self._budget = budget_tokens
        self._threshold = long_prefill_tokens

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        running, waiting = list(snapshot.running), snapshot.waiting
        batch = BatchBuilder(snapshot, self._budget)
        chunk = batch.tokens_left
        if self._threshold is not None and len(running) + len(waiting) > 1:
            chunk = min(chunk, self._threshold)
        preempted: list[Job] = []
        k = 0
        while k < len(running) and batch.tokens_left:
            job = running[k]
            tokens = min(job.left_tokens, chunk, batch.tokens_left)
            while not batch.add(job, tokens):
                victim = self._victim(running)
                running.remove(victim)
                k -= batch.drop(victim)
                preempted.append(victim)
                if victim is job:
                    return Allocation(batch.entries, preempted=preempted)
            k += 1
        room = snapshot.engine.max_num_seqs - len(running)
        if room and not preempted:
            for job in self._queue(waiting)[:room]:
                if not batch.tokens_left or batch.blocks_for(job, job.left_tokens) > batch.free_blocks:
                    break
                batch.add(job, min(job.left_tokens, chunk, batch.tokens_left))
        return Allocation(batch.entries, preempted=preempted)

    def _victim(self, running: list[Job]) -> Job:
        return running[-1]

    def _queue(self, waiting: list[Job]) -> list[Job]:
        return waiting


class VllmPriorityPolicy(VllmPolicy):
    """`VllmPolicy` ordered, and preempting, by (tightest TPOT first, arrival)."""

    name = "vllm-priority"

    def _victim(self, running: list[Job]) -> Job:
        return max(running, key=_priority)

    def _queue(self, waiting: list[Job]) -> list[Job]:
        return sorted(waiting, key=lambda job: (*_priority(job), job.id))


def _priority(job: Job) -> tuple[float, float]:
    return (job.tpot_s, job.release_s)
