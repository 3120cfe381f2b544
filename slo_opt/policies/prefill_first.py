"""Prefill first: whole prompts before any decode, as vLLM scheduled before it could chunk them."""

from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue

_WATERMARK = 0.01  # share of the KV blocks that new prompts leave free


class PrefillFirstPolicy:
    """A batch holds prompts or decodes, never both.

    As long as a waiting prompt fits, batches hold whole prompts, first come first served; all decodes stand still.
    Otherwise every running request decodes. New prompts leave 1 % of the KV blocks free.

    Chosen here: a prompt above the budget is cut into batches of its own, where vLLM refused it. Best-effort prompts
    begin only where no request under an SLO runs.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    budget_tokens : int
        Most tokens of a batch.

    References
    ----------
    vLLM (Kwon et al., SOSP 2023, arXiv 2309.06180: scheduling and preemption), its scheduler without chunked prefill.
    """

    name = "prefill-first"

    def __init__(self, context: PolicyContext, budget_tokens: int = 8192) -> None:
        self._budget = budget_tokens
        self._watermark = int(_WATERMARK * context.engine.kv_blocks)
        self._queue = WaitingQueue(_arrival)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        step.batch.cap(self._budget)
        first = queue.first()
        reserve = self._watermark if snapshot.running else 0
        if step.prefills or (first is not None and step.has_room(first, reserve_blocks=reserve)):
            step.prefill(queue, whole=True, reserve_blocks=reserve)
        if not step.batch.entries:
            step.decode(step.decodes)
            step.serve_spare(queue, prompts=not step.batch.entries)
        return step.allocation()


def _arrival(job: Job) -> float:
    return job.release_s
