"""One decision in the making: who is served next, and who gives way where sequences or KV blocks run short."""

import math
from collections.abc import Callable, Sequence

from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job, Standing
from slo_opt.policies.waiting import WaitingQueue

_BEST_EFFORT = Standing.BEST_EFFORT


class Step:
    """A batch under construction, for policies that differ in their order and in how much they take.

    Memory is handled as in vLLM: a decode that cannot grow preempts, by recompute, the running job of last rank, and
    nobody begins in a step that had to do so. A waiting job begins when its whole prompt fits beside what the prompts
    begun before it still need. Best-effort jobs give way to all others, for memory and for sequences.

    Parameters
    ----------
    snapshot : EngineSnapshot
        State of the replica.
    rank : callable or None
        Of two running jobs under an SLO the one of higher rank is preempted first; None for the later begun.

    Attributes
    ----------
    batch : BatchBuilder
        The batch so far.
    decodes, prefills : list of Job
        Running jobs under an SLO, as they began.
    spare : list of Job
        Running best-effort jobs, as they began.
    preempted, rejected, demoted : list of Job
        Decisions so far.
    """

    def __init__(self, snapshot: EngineSnapshot, rank: Callable[[Job], float] | None = None) -> None:
        engine = snapshot.engine
        self.batch = BatchBuilder(snapshot)
        self.decodes: list[Job] = []
        self.prefills: list[Job] = []
        self.spare: list[Job] = []
        self.preempted: list[Job] = []
        self.rejected: list[Job] = []
        self.demoted: list[Job] = []
        self._now_s = snapshot.now_s
        self._running = snapshot.running
        self._rank = rank
        self._victims: list[Job] | None = None
        self._block = engine.block_size_tokens
        self._most_tokens = min(engine.max_model_len, engine.kv_blocks * self._block)
        self._seqs_free = engine.max_num_seqs - len(snapshot.running)
        self._owed_blocks = 0  # what prompts that have begun still need
        self._short = False
        decodes, prefills, spare = self.decodes, self.prefills, self.spare
        for job in snapshot.running:
            if job.standing is _BEST_EFFORT:
                spare.append(job)
            elif job.decoding:
                decodes.append(job)
            else:
                prefills.append(job)
                self._owed_blocks += self._missing(job)

    def _missing(self, job: Job) -> int:
        return -(-job.known_tokens // self._block) - job.kv_blocks

    def decode(self, jobs: Sequence[Job]) -> None:
        """One token for each, in this order."""
        batch = self.batch
        added = batch.add_decodes(jobs)
        while added < len(jobs) and batch.tokens_left and batch.seqs_left:
            jobs = jobs[added:]
            jobs = [job for job in jobs if job not in self.preempted] if self._make_room(jobs[0]) else jobs[1:]
            added = batch.add_decodes(jobs)

    def speculate(self, job: Job, tokens: int) -> None:
        """A decode of so many tokens, drafted ones included; a plain one where they do not fit."""
        if job not in self.preempted and not self.batch.add(job, tokens):
            self.decode([job])

    def prefill(
        self,
        queue: WaitingQueue,
        seconds: float = math.inf,
        *,
        whole: bool = False,
        reserve_blocks: int = 0,
        admit: Callable[[Job], bool] | None = None,
    ) -> None:
        """Chunks of prompts, begun and waiting ones together in the order of the queue.

        Parameters
        ----------
        queue : WaitingQueue
            Where to take jobs from.
        seconds : float
            The batch may last so long.
        whole : bool
            Cut only a prompt that has the batch to itself.
        reserve_blocks : int
            KV blocks that waiting prompts leave free.
        admit : callable or None
            Whether the first in line may begin; if not, none behind it does.
        """
        batch, key = self.batch, queue.key
        begun = sorted(self.prefills, key=key, reverse=True)
        barred = False
        while batch.tokens_left and batch.seqs_left:
            first = None if barred else queue.first()
            if begun and (first is None or key(begun[-1]) <= key(first)):
                job = begun.pop()
                if job not in self.preempted and not self.extend(job, seconds):
                    break
            elif first is None:
                break
            elif first.known_tokens > self._most_tokens:
                self.rejected.append(queue.pop())
            elif whole and batch.entries and first.left_tokens > batch.tokens_left:
                break
            elif not (admit is None or admit(first)) or not self.has_room(first, reserve_blocks=reserve_blocks):
                barred = True
            elif not self.begin(first, seconds):
                break
            else:
                queue.pop()

    def extend(self, job: Job, seconds: float) -> bool:
        """A chunk of a prompt that has begun; whether time was left for one."""
        batch = self.batch
        tokens = batch.chunk_within(job, seconds)
        if not tokens and not batch.free_blocks and self._make_room(job):
            tokens = batch.chunk_within(job, seconds)
        blocks = batch.free_blocks
        if not batch.add(job, tokens):
            return not batch.free_blocks
        self._owed_blocks -= blocks - batch.free_blocks
        return True

    def begin(self, job: Job, seconds: float) -> bool:
        """The first chunk of a job that waits; whether time was left for one."""
        batch = self.batch
        blocks = batch.free_blocks
        if not batch.add(job, batch.chunk_within(job, seconds)):
            return False
        self._owed_blocks += self._missing(job) - (blocks - batch.free_blocks)
        self._seqs_free -= 1
        return True

    def has_room(self, job: Job, *, reserve_blocks: int = 0, displace: bool = True) -> bool:
        """Whether a waiting job can begin.

        Parameters
        ----------
        job : Job
            Its whole context has to fit.
        reserve_blocks : int
            KV blocks to leave free beyond that.
        displace : bool
            Preempt best-effort jobs for it, if that is enough; not once they are in the batch.
        """
        if self._short:
            return False
        blocks = self.blocks_short(job) + reserve_blocks
        if blocks > 0 or self._seqs_free < 1:
            spare = self.spare
            if not displace or sum(other.kv_blocks for other in spare) < blocks or self._seqs_free + len(spare) < 1:
                return False
            while blocks > 0 or self._seqs_free < 1:
                blocks -= spare[-1].kv_blocks
                self.preempt(spare[-1])
        return True

    def blocks_short(self, job: Job) -> int:
        """KV blocks lacking for a waiting job to begin; 0 or less where there are enough."""
        return self._missing(job) + self._owed_blocks - self.batch.free_blocks

    def preempt(self, job: Job) -> None:
        """Drop the KV blocks of a running job that is not in the batch."""
        self.batch.drop(job)
        self.preempted.append(job)
        self._seqs_free += 1
        if job in self.spare:
            self.spare.remove(job)
        elif job.decoding:
            self.decodes.remove(job)
        else:
            self.prefills.remove(job)
            self._owed_blocks -= self._missing(job)

    def demote(self, job: Job) -> None:
        """Make a job that holds blocks best effort, before anything is scheduled."""
        (self.decodes if job.decoding else self.prefills).remove(job)
        if not job.decoding:
            self._owed_blocks -= self._missing(job)
        self.spare.append(job)
        self.demoted.append(job)

    def _make_room(self, job: Job) -> bool:
        """Preempt for a job that cannot grow; False if it is itself the first to give way."""
        self._short = True
        if self._victims is None:
            spare = set(self.spare)
            under_slo = [other for other in self._running if other not in spare]
            if self._rank is not None:
                under_slo.sort(key=self._rank)
            self._victims = [*under_slo, *self.spare]
        victims = self._victims
        taken = {id(other) for other, _ in self.batch.entries}
        while victims and (id(victims[-1]) in taken or victims[-1] in self.preempted):
            victims.pop()
        if not victims or victims[-1] is job:
            return False
        self.preempt(victims.pop())
        return True

    def serve_spare(self, queue: WaitingQueue, seconds: float = math.inf, *, prompts: bool = True) -> None:
        """Best-effort jobs, with the tokens, memory and time that are left.

        Parameters
        ----------
        queue : WaitingQueue
            Where to take them from.
        seconds : float
            The batch may last so long, unless it holds nothing else.
        prompts : bool
            False for decodes only.
        """
        batch = self.batch
        first = queue.first_spare()
        if first is None and not self.spare:
            return
        if not batch.entries:
            seconds = math.inf
        left_s = seconds - batch.time_s
        begun = []
        for job in list(self.spare):
            if not job.decoding:
                begun.append(job)
                self._owed_blocks += self._missing(job)
            elif job not in self.preempted:
                left_s -= batch.decode_s(job)
                if left_s < 0:
                    return
                self.decode([job])
        if not prompts:
            return
        for job in begun:
            if job not in self.preempted and not self.extend(job, seconds):
                return
        while first is not None and batch.tokens_left and batch.seqs_left:
            if first.known_tokens > self._most_tokens:
                self.rejected.append(queue.pop_spare())
            elif not self.has_room(first, displace=False) or not self.begin(first, seconds):
                return
            else:
                queue.pop_spare()
            first = queue.first_spare()

    def slack_s(self) -> float:
        """Seconds until the first deadline of a decode in the batch; infinite without a decode.

        A token that is late whatever happens counts as due one TPOT from now, so that it keeps its pace without
        holding up all others for good.
        """
        now_s, base_s = self._now_s, self.batch.time_s
        slack_s = math.inf
        for job, _ in self.batch.entries:
            if job.decoding:
                left_s = job.due_s - now_s
                if left_s < base_s:
                    left_s = job.tpot_s
                if left_s < slack_s:
                    slack_s = left_s
        return slack_s

    def until_due_s(self, slack_s: float) -> float:
        """Seconds until the first deadline in the batch, of prompts too; `slack_s` for the decodes."""
        now_s = self._now_s
        due_s = min((job.due_s for job, _ in self.batch.entries if not job.decoding), default=math.inf)
        return min(slack_s, due_s - now_s)

    def allocation(self) -> Allocation:
        """What was decided."""
        return Allocation(self.batch.entries, preempted=self.preempted, demoted=self.demoted, rejected=self.rejected)
