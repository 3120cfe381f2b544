"""Sarathi-Serve: decodes never stall, prompts are chunked into what a fixed token cap leaves."""

from slo_opt.policies.budget import tightest_budget
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class SarathiPolicy:
    """Every running decode, then prompts that have begun, then new ones, up to a fixed number of tokens.

    First come first served. The cap is what keeps the tightest TPOT of all classes, by the engine model, for a batch of
    prompts alone; decodes count towards it but are never left out for it.

    Chosen here: the paper finds its cap by profiling an engine; this one comes from the engine model, and `cap_factor`
    and `cap_tokens` let a search find a better one.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    cap_factor : float
        The cap keeps so many times the tightest TPOT.
    cap_tokens : int or None
        The cap itself.

    References
    ----------
    Sarathi-Serve (Agrawal et al., OSDI 2024, arXiv 2403.02310: stall-free batching, token budget).
    """

    name = "sarathi"

    def __init__(self, context: PolicyContext, cap_factor: float = 1.0, cap_tokens: int | None = None) -> None:
        self._cap = tightest_budget(context, cap_factor) if cap_tokens is None else cap_tokens
        self._queue = WaitingQueue(_arrival)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        step.decode(step.decodes)
        step.batch.cap(self._cap)
        step.prefill(queue)
        step.serve_spare(queue)
        return step.allocation()


def _arrival(job: Job) -> float:
    return job.release_s
