"""PolyServe on one replica: all decodes, then as much of the prompts as the tightest budget allows."""

from slo_opt.policies.budget import tightest_tpot_s
from slo_opt.policies.edf import due
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class PolyServePolicy:
    """Dynamic chunking: the largest chunk of prompts with which the batch ends within the tightest remaining budget.

    Every decode is in every batch; its remaining budget is the time until its next token is due, so a batch may last
    longer while all are ahead. Who may enter is decided by the router, `slo_opt.routing.polyserve`; a replica takes
    what it is sent, first come first served, as the router's predictions assume.

    Chosen here: the order of prompts, and that a request without a promise gets what is left, in batches no longer than
    the tightest TPOT. A decode that is late counts as due one TPOT from now.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    dynamic : bool
        Otherwise chunks of `fixed_tokens` in all, the static chunk that the paper compares with.
    fixed_tokens : int
        Token budget of a batch without dynamic chunks.
    by_deadline : bool
        Prompts by deadline instead of arrival.

    References
    ----------
    PolyServe, arXiv 2507.17769, section 4 (dynamic chunking).
    """

    name = "polyserve"

    def __init__(
        self,
        context: PolicyContext,
        dynamic: bool = True,
        fixed_tokens: int = 512,
        by_deadline: bool = False,
    ) -> None:
        self._spare_s = tightest_tpot_s(context)
        self._dynamic = dynamic
        self._fixed_tokens = fixed_tokens
        self._queue = WaitingQueue(due if by_deadline else _arrival)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        step.decode(step.decodes)
        if not self._dynamic:
            step.batch.cap(self._fixed_tokens)
            step.prefill(queue)
            step.serve_spare(queue)
            return step.allocation()
        slack_s = step.slack_s()
        step.prefill(queue, slack_s)
        step.serve_spare(queue, min(self._spare_s, step.until_due_s(slack_s)))
        return step.allocation()


def _arrival(job: Job) -> float:
    return job.release_s
