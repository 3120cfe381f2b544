"""Earliest deadline first, over tokens."""

from slo_opt.policies.budget import tightest_tpot_s
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class EdfPolicy:
    """Every job by the deadline of its next token; prompts in chunks that end before a decode is late.

    All decodes that fit are in the batch, the earliest deadline first. Prompts follow in the order of their first-token
    deadlines, a chunk as large as lets the batch end before the earliest deadline of a decode in it: requests that are
    ahead of their pace make room for large chunks. Nothing is dropped, so under overload late requests delay others.

    Chosen here: a decode that is late whatever happens counts as due one TPOT from now, or its lateness would stop
    all prompts; where KV is short the latest deadline gives way; best effort makes no batch longer than the tightest
    TPOT, since whoever arrives has to wait for it.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.

    References
    ----------
    Liu and Layland, J. ACM 20 (1973), doi 10.1145/321738.321743 (deadline-driven scheduling).
    """

    name = "edf"

    def __init__(self, context: PolicyContext) -> None:
        self._spare_s = tightest_tpot_s(context)
        self._queue = WaitingQueue(due)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot, rank=due)
        decodes = step.decodes
        if len(decodes) > min(step.batch.tokens_left, step.batch.seqs_left):
            decodes.sort(key=due)
        step.decode(decodes)
        slack_s = step.slack_s()
        step.prefill(queue, slack_s)
        step.serve_spare(queue, min(self._spare_s, step.until_due_s(slack_s)))
        return step.allocation()


def due(job: Job) -> float:
    """Deadline of its next token."""
    return job.due_s
