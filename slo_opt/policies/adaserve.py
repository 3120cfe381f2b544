"""AdaServe: as many drafted tokens as each request needs for its TPOT, what is left to the likeliest."""

from slo_opt.domain.speculation import tokens_per_step
from slo_opt.policies.budget import tightest_budget, tightest_tpot_s
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class AdaServePolicy:
    """Speculation lengths by need, within one token budget.

    Every running request decodes. First, those that lag get drafted tokens until the tokens expected of the step are as
    many as they will owe at its end, the furthest behind first. Prompts take their share of the budget, first come
    first served. Tokens that are left lengthen the shortest drafts: with equal acceptance, the next token of the
    shortest draft is the likeliest to be accepted.

    Chosen here: drafts are chains, not trees, and one acceptance holds for all, so the likeliest tokens are those
    nearest the root; the step lasts as long as the one before; prompts come before drafts that nobody needs. Without
    a draft model this is Sarathi-Serve with its cap as the budget.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    budget_factor : float
        The budget keeps so many times the tightest TPOT.
    idle_factor : float
        Drafts that nobody needs end at the tokens which keep so many times the tightest TPOT.
    max_draft : int
        Longest draft.

    References
    ----------
    AdaServe (Li et al., arXiv 2501.12162: SLO-customized and throughput-optimized token selection).
    """

    name = "adaserve"

    def __init__(
        self, context: PolicyContext, budget_factor: float = 1.0, idle_factor: float = 0.5, max_draft: int = 4
    ) -> None:
        self._budget = tightest_budget(context, budget_factor)
        self._idle_budget = context.engine.max_tokens_within(idle_factor * tightest_tpot_s(context))
        self._max_draft = max_draft
        self._queue = WaitingQueue(_arrival)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot)
        decodes = step.decodes
        if snapshot.acceptance > 0 and decodes:
            prompts = queue.tokens + sum(job.left_tokens for job in step.prefills)
            lengths = self._lengths(decodes, snapshot, prompts)
            plain = [job for job, length in zip(decodes, lengths, strict=True) if length == 1]
            drafted = [(job, length) for job, length in zip(decodes, lengths, strict=True) if length > 1]
            step.decode(plain)
            for job, length in drafted:
                step.speculate(job, length)
        else:
            step.decode(decodes)
        step.batch.cap(self._budget)
        step.prefill(queue)
        step.serve_spare(queue)
        return step.allocation()

    def _lengths(self, decodes: list[Job], snapshot: EngineSnapshot, prompt_tokens: int) -> list[int]:
        """Tokens of each decode, its drafted ones included."""
        budget = min(self._budget, snapshot.engine.max_num_batched_tokens)
        left = budget - len(decodes)
        lengths = [1] * len(decodes)
        expected = [tokens_per_step(length, snapshot.acceptance) for length in range(1, self._max_draft + 2)]
        end_s = snapshot.now_s + (snapshot.last_batch_s or 0.0)
        owed = [(1 + (end_s - job.due_s) / job.tpot_s, k) for k, job in enumerate(decodes)]
        for tokens, k in sorted((pair for pair in owed if pair[0] > 1), reverse=True):
            while left > 0 and lengths[k] <= self._max_draft and expected[lengths[k] - 1] < tokens:
                lengths[k] += 1
                left -= 1
        left -= prompt_tokens + budget - min(budget, self._idle_budget)
        for level in range(1, self._max_draft + 1):
            for k, length in enumerate(lengths):
                if left <= 0:
                    return lengths
                if length == level:
                    lengths[k] += 1
                    left -= 1
        return lengths


def _arrival(job: Job) -> float:
    return job.release_s
