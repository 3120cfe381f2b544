"""JITServe (first published as Tempo): the most reward for the time it takes, on imprecise lengths."""

from slo_opt.policies.budget import tightest_tpot_s
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.step import Step
from slo_opt.policies.waiting import WaitingQueue

UNKNOWN_TOKENS = 256  # output assumed where nothing is known
_SMOOTHING = 0.1


class JitServePolicy:
    """Requests by reward density: value over the time that they still take.

    That time is the rest of the prompt at the engine's rate, and a step for each output token that the predictor still
    expects; it is refreshed every `frame_batches` batches as tokens appear. A request that was late, or whose deadline
    has become impossible, earns nothing and comes last. When memory or sequences are short, a waiting request preempts
    those whose density is less than that of its own by a factor.

    Chosen here: the reward is the value of attaining the request, since a request counts as a whole; running decodes
    are all served, in chunks of prompts that end before one of them is late, which is the just-in-time share; a request
    is displaced for its density once at most, so that it ends; requests are not grouped by input length; late decodes
    and best effort are handled as in `EdfPolicy`. The paper estimates lengths by upper quantiles: give it such a
    predictor.

    Parameters
    ----------
    context : PolicyContext
        Engine, classes and the predictor of lengths.
    frame_batches : int
        Batches between two refreshes.
    displace : float
        A waiting request displaces running ones of a density so many times lower.

    References
    ----------
    JITServe (Zhang et al., arXiv 2504.20068: reward density, lengths refined as tokens appear).
    """

    name = "jitserve"

    def __init__(self, context: PolicyContext, frame_batches: int = 20, displace: float = 2.0) -> None:
        engine = context.engine
        self._lengths = context.lengths
        self._frame = frame_batches
        self._displace = displace
        most = engine.max_num_batched_tokens
        self._token_s = engine.batch_time_s(most, num_requests=1) / most
        self._step_s = engine.batch_time_s(1, num_requests=1)
        self._spare_s = tightest_tpot_s(context)
        self._now_s = 0.0
        self._batches = 0
        self._queue = WaitingQueue(self._key)

    def _density(self, job: Job) -> float:
        """Value a second."""
        prefill_s = 0.0 if job.decoding else job.left_tokens * self._token_s
        if job.missed or (not job.decoding and self._now_s + prefill_s > job.due_s):
            return 0.0
        tokens = self._lengths.remaining_tokens(job)
        if tokens is None:
            tokens = max(1, UNKNOWN_TOKENS - job.emitted_tokens)
        return job.value / (prefill_s + self._step_s * tokens)

    def _key(self, job: Job) -> float:
        return -self._density(job)

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        queue = self._queue
        self._now_s = snapshot.now_s
        for end in snapshot.finished:
            self._lengths.observe(end)
        if snapshot.last_batch_s is not None:
            self._step_s += _SMOOTHING * (snapshot.last_batch_s - self._step_s)
        queue.sync(snapshot.waiting, snapshot.disturbed)
        step = Step(snapshot, rank=self._key)
        if self._batches % self._frame == 0:
            queue.rekey()
            self._preempt_for_first(step)
        self._batches += 1
        if len(step.decodes) > min(step.batch.tokens_left, step.batch.seqs_left):
            step.decodes.sort(key=self._key)
        step.decode(step.decodes)
        slack_s = step.slack_s()
        step.prefill(queue, slack_s)
        step.serve_spare(queue, min(self._spare_s, step.until_due_s(slack_s)))
        return step.allocation()

    def _preempt_for_first(self, step: Step) -> None:
        """Make room for the waiting request of most density, if giving way to it pays."""
        first = self._queue.first()
        if first is None or step.has_room(first):
            return
        most = self._density(first)
        worse = [(self._density(job), job) for job in (*step.decodes, *step.prefills) if not job.preemptions]
        worse = sorted((pair for pair in worse if pair[0] * self._displace < most), key=lambda pair: pair[0])
        if sum(job.kv_blocks for _, job in worse) < step.blocks_short(first):
            return
        for _, job in worse:
            step.preempt(job)
            if step.has_room(first):
                break
