"""A policy outside the registry, as a user would write one."""

from slo_opt.policies.interface import Allocation, EngineSnapshot
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class ShortestPromptFirst:
    """Decodes, then the prompt with the fewest tokens left."""

    name = "shortest-prompt-first"

    def __init__(self, context: PolicyContext, slack: float = 1.0) -> None:
        self._queue = WaitingQueue(lambda job: job.left_tokens)
        self._slack = slack

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        self._queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        step.decode(step.decodes)
        step.prefill(self._queue, self._slack * step.slack_s())
        step.serve_spare(self._queue)
        return step.allocation()
