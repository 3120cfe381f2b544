"""vLLM's own scheduler, first come first served or by priority."""

from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext


class VllmPolicy:
    """The rules of vLLM's V1 scheduler with chunked prefill.

    Running requests first, in the order in which they began, then the queue, until the token budget is spent. Where KV
    is short the last of the running is preempted by recompute and nobody new starts in that step.

    Parameters
    ----------
    budget_tokens : int
        `max_num_batched_tokens`.
    long_prefill_tokens : int or None
        `long_prefill_token_threshold`: no request prefills more in one step.

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
        running, waiting = snapshot.running, snapshot.waiting
        batch = BatchBuilder(snapshot, self._budget)
        preempted: list[Job] = []
        k = 0
        while k < len(running) and batch.tokens_left:
            job = running[k]
            tokens = self._tokens(job, batch)
            while not batch.add(job, tokens):
                victim = self._victim(running)
                running.remove(victim)
                if batch.entries and any(entry[0] is victim for entry in batch.entries):
                    at = next(i for i, entry in enumerate(batch.entries) if entry[0] is victim)
                    batch.remove(at)
                    k -= 1
                batch.drop(victim)
                preempted.append(victim)
                if victim is job:
                    break
            else:
                k += 1
                continue
            break
        if not preempted:
            for job in self._queue(waiting):
                if not batch.tokens_left or len(running) == snapshot.engine.max_num_seqs:
                    break
                if not batch.add(job, self._tokens(job, batch)):
                    break
                running.append(job)
        return Allocation(batch.entries, preempted=preempted)

    def _tokens(self, job: Job, batch: BatchBuilder) -> int:
        tokens = job.known_tokens - job.computed_tokens
        if self._threshold is not None and tokens > self._threshold:
            tokens = self._threshold
        return min(tokens, batch.tokens_left)

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
        return sorted(waiting, key=_priority)


def _priority(job: Job) -> tuple[float, float]:
    return (job.tpot_s, job.release_s)
