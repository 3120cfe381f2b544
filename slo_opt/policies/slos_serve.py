"""SLOs-Serve: admission by the DP, batches of one period, a best-effort tier for bursts, speculation by SLO."""

import math

from slo_opt.domain.speculation import tokens_per_step
from slo_opt.policies.admission import Admission, draft_lengths, least_prefill_s
from slo_opt.policies.budget import batch_period_s
from slo_opt.policies.edf import due
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job, Standing
from slo_opt.policies.margin import Margin
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue

REPLAN_NEW = 10
REPLAN_FINISHED = 6


class SlosServePolicy:
    """Plan, form batches of the plan's period, serve the declined with what is left.

    The plan is made anew when more than 10 requests have come or more than 6 have gone, every 0.1 s while somebody
    waits for it, and at once when nothing under an SLO runs. Requests that it declines become best effort for good.
    Between plans, a batch lasts one period, the tightest TPOT present; a decode joins when its token is due before the
    batch after next would end, so that a tier of twice the TPOT joins every other batch (and one that lags, every
    batch). Prompts fill the batch by deadline, best effort the rest; its KV is dropped where others need it.

    Chosen here: the plan reserves the peak of KV memory, as in the paper; a request that becomes hopeless while it
    waits is declined without a plan; between plans the undecided begin like all others, in the order of deadlines, and
    whoever has begun is kept; with no decode the period is that of the tightest class, or a full batch where nobody
    ever decodes; with drafts, where a period stands for several tokens, a batch also ends where the next token of a
    decode is due; times are stretched by a learned margin, in the place of the authors' additive slack.

    Parameters
    ----------
    context : PolicyContext
        Engine, classes, length knowledge.
    replan_s : float
        Longest wait for a plan; 0.1 in the paper, 0 plans at every arrival.
    growth : bool
        Running decodes hold KV blocks as they grow and until they depart, not their peak throughout as in the paper.
    dynamic : bool
        Batches sized by the period; otherwise `fixed_tokens` a batch: the paper's ablation of dynamic batch sizes.
    fixed_tokens : int
        Token budget without dynamic sizes.
    greedy : bool
        Admission by deadline instead of the DP: for ablations.
    best_effort : bool
        Whether declined requests are served, or rejected: the paper's burst tier.
    speculate : bool
        Whether draft lengths are chosen by SLO where the engine has a draft model.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, sections 4 and 5.
    """

    name = "slos-serve"

    def __init__(
        self,
        context: PolicyContext,
        replan_s: float = 0.1,
        growth: bool = False,
        dynamic: bool = True,
        fixed_tokens: int = 512,
        greedy: bool = False,
        best_effort: bool = True,
        speculate: bool = True,
    ) -> None:
        self._admission = Admission(
            context.lengths, memory="growth" if growth else "peak", greedy=greedy, decodes=context.decodes
        )
        self._lengths = context.lengths
        # A tier faster than the engine's step is always declined; its period would leave no time for anybody.
        self._shortest_s = 1.2 * context.engine.zero_load_ttft_s(1)
        self._tightest_s = max(batch_period_s(context), self._shortest_s)
        self._replan_s = replan_s
        self._dynamic = dynamic
        self._fixed_tokens = fixed_tokens
        self._best_effort = best_effort
        self._speculate = speculate
        self._margin = Margin()
        self._queue = WaitingQueue(due)
        self._plan_at_s = -math.inf
        self._ended = 0

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        for end in snapshot.finished:
            self._lengths.observe(end)
        self._ended += len(snapshot.finished)
        self._margin.learn(snapshot.last_batch_s)
        step = Step(snapshot, rank=due)
        self._queue.sync(snapshot.waiting, snapshot.disturbed)
        for job in [job for job in (*step.decodes, *step.prefills) if job.missed]:
            step.demote(job)
        drafts = draft_lengths(snapshot, step.decodes) if self._speculate else {}
        admitted = self._admit(snapshot, step, drafts)
        allocation = self._form(snapshot, step, drafts)
        self._margin.expect(step.batch.time_s if allocation.tokens else None)
        allocation.admitted = [job for job in admitted if job not in step.demoted]
        if not allocation.tokens and len(self._queue):
            allocation.wake_s = max(self._plan_at_s, snapshot.now_s + 1e-3)
        return allocation

    def _admit(self, snapshot: EngineSnapshot, step: Step, drafts: dict[float, int]) -> list[Job]:
        """Decide on the undecided if it is time to; those who are let in."""
        now_s, engine = snapshot.now_s, snapshot.engine
        for job in self._queue.under_slo():
            if job.missed or now_s + least_prefill_s(job, engine) > job.due_s:
                self._decline(step, job)
        new = [job for job in self._queue.under_slo() if job.standing is Standing.UNDECIDED]
        idle = not step.decodes and not step.prefills
        due_now = idle or len(new) > REPLAN_NEW or self._ended > REPLAN_FINISHED or now_s >= self._plan_at_s
        if not new or not due_now:
            return []
        self._plan_at_s = now_s + self._replan_s
        self._ended = 0
        promised = [job for job in self._queue.under_slo() if job.standing is Standing.ADMITTED]
        accepted = self._admission.accept(snapshot, step.decodes, [*step.prefills, *promised], new, drafts) or set()
        for job in new:
            if job not in accepted:
                self._decline(step, job)
        return [job for job in new if job in accepted]

    def _decline(self, step: Step, job: Job) -> None:
        if self._best_effort:
            self._queue.relegate(job)
            step.demoted.append(job)
        else:
            self._queue.remove(job)
            step.rejected.append(job)

    def _form(self, snapshot: EngineSnapshot, step: Step, drafts: dict[float, int]) -> Allocation:
        """One batch of the plan's period."""
        now_s = snapshot.now_s
        periods = {job.tpot_s: job.tpot_s for job in step.decodes}
        for tpot_s, length in drafts.items():
            periods[tpot_s] = tpot_s * tokens_per_step(length, snapshot.acceptance)
        period_s = max(min(periods.values(), default=self._tightest_s), self._shortest_s)
        horizon_s = now_s + 2 * period_s
        chosen = [job for job in step.decodes if job.due_s <= horizon_s]
        chosen.sort(key=due)
        if drafts:
            for job in chosen:
                step.speculate(job, drafts.get(job.tpot_s, 1))
        else:
            step.decode(chosen)
        seconds = period_s
        if not self._dynamic:
            step.batch.cap(self._fixed_tokens)
            seconds = math.inf
        else:
            # Intervals of the plan end at first-token deadlines, and so do batches.
            prompts = [*step.prefills, *self._queue.under_slo()]
            ends_s = [min((job.due_s for job in prompts), default=math.inf)]
            if drafts:  # a period of several tokens is too long for a decode without a lead
                ends_s += [job.due_s for job in chosen]
            least_s = step.batch.time_s
            seconds = min([seconds, *(end_s - now_s for end_s in ends_s if end_s - now_s > least_s)])
        seconds = max(seconds / self._margin.factor, min(seconds, self._shortest_s))  # a chunk must fit
        step.prefill(self._queue, seconds)
        step.serve_spare(self._queue, seconds)
        if not step.batch.entries:
            step.decode(step.decodes)  # all are ahead, but the engine must not idle
        return step.allocation()
