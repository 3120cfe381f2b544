"""QoServe (first published as Niyama): deadlines and job sizes in one key, slack-sized chunks, relegation."""

import math

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.budget import tightest_budget, tightest_tpot_s
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue


class QoServePolicy:
    """Decodes always; prompts by ``deadline + α·remaining prompt tokens`` in chunks as large as the slack allows.

    With a small α this is earliest deadline first; with a large one, under load, short prompts pass long ones. The
    least slack of a decode has to cover `margin` times the batch. A prompt that holds no KV and would miss its deadline
    even if it had the engine to itself from now on is relegated: served as best effort. Decodes are not preempted while
    a prompt can be.

    Chosen here: the load is high when the prompts that wait would together, at the engine's rate, pass the first
    deadline among the first in line; that rate is the one of batches which keep the tightest TPOT. The batch time comes
    from the engine model, not from a learned predictor. Late decodes and best effort are handled as in `EdfPolicy`.

    Parameters
    ----------
    context : PolicyContext
        Engine and classes.
    alpha_ms : float
        α under load, milliseconds a token.
    calm_alpha_ms : float
        α otherwise.
    margin : float
        Factor on predicted batch times.

    Raises
    ------
    InvalidInputError
        The margin is 0 or less.

    References
    ----------
    Niyama (Goel et al., arXiv 2503.22562: dynamic chunking, hybrid prioritization, eager relegation).
    """

    name = "qoserve"

    def __init__(
        self, context: PolicyContext, alpha_ms: float = 8.0, calm_alpha_ms: float = 1.0, margin: float = 1.2
    ) -> None:
        if margin <= 0:
            raise InvalidInputError(f"policy 'qoserve': margin is {margin}; expected a factor above 0, 1 for none")
        budget = tightest_budget(context)
        self._token_s = context.engine.batch_time_s(budget, num_requests=1) / budget
        self._alphas_s = (calm_alpha_ms / 1e3, alpha_ms / 1e3)
        self._alpha_s = self._alphas_s[0]
        self._margin = margin
        self._spare_s = tightest_tpot_s(context)
        self._queue = WaitingQueue(self._key)

    def _key(self, job: Job) -> float:
        return job.due_s + self._alpha_s * (job.known_tokens - job.computed_tokens)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue, now_s = self._queue, snapshot.now_s
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot, rank=_decodes_first)
        while (first := queue.first()) is not None and self._hopeless(first, now_s):
            step.demoted.append(queue.demote())
        self._weigh_load(now_s)
        step.decode(step.decodes)
        slack_s = step.slack_s() / self._margin
        step.prefill(queue, slack_s)
        step.serve_spare(queue, min(self._spare_s, step.until_due_s(slack_s)))
        return step.allocation()

    def _hopeless(self, job: Job, now_s: float) -> bool:
        return now_s + job.left_tokens * self._token_s > job.due_s

    def _weigh_load(self, now_s: float) -> None:
        """Take the α of the load, and sort again if it has changed."""
        first = self._queue.first()
        backlog_s = self._queue.tokens * self._token_s
        alpha_s = self._alphas_s[first is not None and now_s + backlog_s > first.due_s]
        if alpha_s != self._alpha_s:
            self._alpha_s = alpha_s
            self._queue.rekey()


def _decodes_first(job: Job) -> float:
    """Prompts give way before decodes, the latest deadline first."""
    return job.due_s if job.decoding else math.inf
