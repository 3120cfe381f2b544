"""One simulated replica: the jobs in it, its KV blocks, and the rules that an allocation must keep."""

from collections.abc import Callable
from typing import cast

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.policies.interface import Allocation, AllocationPolicy, EngineSnapshot, Job, RoundEnd, Standing
from slo_opt.simulate.life import Life
from slo_opt.simulate.prefix_cache import PrefixCache


class IllegalAllocationError(InvalidInputError):
    """A policy asked for what the engine cannot do: a defect of the policy."""


class Replica:
    """State of one engine between batches.

    Invariants: a job is in `running` iff it holds KV blocks; blocks held and `free_blocks` add up to the cache.

    `dropped` holds the jobs that lost their KV since the last batch, preempted or rejected; `num_lost` counts the
    requests under an SLO that left unattained.

    Parameters
    ----------
    engine : EngineModel
        The engine.
    policy : AllocationPolicy
        Who decides.
    acceptance : float
        Chance that a drafted token is accepted.
    cache : PrefixCache or None
        None where prompts share nothing.
    prefill_only : bool
        Whether jobs leave at their first token, for a replica that decodes: it needs no room for their outputs.
    """

    def __init__(
        self,
        engine: EngineModel,
        policy: AllocationPolicy,
        acceptance: float = 0.0,
        cache: PrefixCache | None = None,
        prefill_only: bool = False,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.running: list[Life] = []
        self.waiting: list[Life] = []
        self.free_blocks = engine.kv_blocks
        self.finished: list[RoundEnd] = []
        self.last_batch_s: float | None = None
        self.num_preemptions = 0
        self.num_demotions = 0
        self.rejected: list[Life] = []
        self.dropped: list[Life] = []
        self.num_lost = 0
        self._acceptance = acceptance
        self._cache = cache
        self._prefill_only = prefill_only

    def renewed(self, policy: AllocationPolicy) -> "Replica":
        """The same engine, empty and with another policy; what has been counted stays."""
        fresh = Replica(self.engine, policy, self._acceptance, self._cache, self._prefill_only)
        fresh.num_preemptions, fresh.num_demotions = self.num_preemptions, self.num_demotions
        fresh.num_lost = self.num_lost
        return fresh

    @property
    def idle(self) -> bool:
        """Whether nothing is in it."""
        return not (self.running or self.waiting)

    def add(self, life: Life) -> None:
        """Let a round arrive. One that could never end here is turned away, as engines do."""
        if fits(self.engine, life, prefill_only=self._prefill_only):
            self.waiting.append(life)
        else:
            self._reject(life)

    def take_rejected(self) -> tuple[list[Life], list[Life]]:
        """Those sent away, for who tries them elsewhere: here they no longer count as lost.

        Returns
        -------
        rejected : list of Life
            All of them.
        dropped : list of Life
            Of those, whose KV was dropped since the last batch.
        """
        rejected, self.rejected = self.rejected, []
        self.num_lost -= sum(life.value > 0 for life in rejected)
        dropped = [life for life in self.dropped if life in rejected]
        self.dropped = [life for life in self.dropped if life not in rejected]
        return rejected, dropped

    def hand_over(self, life: Life) -> int:
        """Let a job leave whose KV another replica is to fetch; the blocks, held until they are given back."""
        self.running.remove(life)
        blocks, life.kv_blocks = life.kv_blocks, 0
        return blocks

    def give_back(self, blocks: int) -> None:
        """Free the blocks of a job that was handed over."""
        self.free_blocks += blocks

    def num_doomed(self, now_s: float) -> int:
        """Requests under an SLO in the engine that cannot be attained any more: a token was late, or is overdue."""
        latest_s = now_s - TIME_TOLERANCE_S
        return sum(
            life.value > 0 and (life.missed or (life.emitted_tokens == 0 and life.due_s < latest_s))
            for lives in (self.running, self.waiting)
            for life in lives
        )

    def decide(self, now_s: float) -> Allocation:
        """Ask the policy, check what it answers, and carry out all of it but the batch."""
        if self._cache is not None:
            for life in self.waiting:
                self._cache.look(life)
        snapshot = EngineSnapshot(
            now_s,
            self.engine,
            list(self.running),
            list(self.waiting),
            self.free_blocks,
            self.finished,
            self.last_batch_s,
            self._acceptance,
        )
        allocation = self.policy.decide(snapshot)
        self.finished = []
        for job in allocation.preempted:
            self._preempt(job, now_s)
        for job in allocation.rejected:
            self._leave(job, now_s)
        for job in (*allocation.admitted, *allocation.demoted):
            if job not in self.running and job not in self.waiting:
                raise self._refuse("it is admitted or demoted but not in the engine", job, now_s)
        for job in allocation.admitted:
            job.standing = Standing.ADMITTED
        for job in allocation.demoted:
            self.num_demotions += job.standing is not Standing.BEST_EFFORT
            job.standing = Standing.BEST_EFFORT
        return allocation

    def _refuse(self, rule: str, job: Job, now_s: float) -> IllegalAllocationError:
        return IllegalAllocationError(
            f"policy {self.policy.name!r} made an illegal allocation for request {job.id!r} at {now_s:.6f} s: {rule}"
        )

    def _preempt(self, job: Job, now_s: float) -> None:
        if job not in self.running:
            raise self._refuse("it is preempted but holds no KV blocks", job, now_s)
        life = self._take(self.running, job)
        self._drop(life)
        life.preemptions += 1
        self.num_preemptions += 1
        self.waiting.insert(0, life)

    def _leave(self, job: Job, now_s: float) -> None:
        if job in self.running:
            life = self._take(self.running, job)
            self._drop(life)
        elif job in self.waiting:
            life = self._take(self.waiting, job)
        else:
            raise self._refuse("it is rejected but not in the engine", job, now_s)
        self._reject(life)

    def _reject(self, life: Life) -> None:
        self.rejected.append(life)
        self.num_lost += life.value > 0

    @staticmethod
    def _take(lives: list[Life], job: Job) -> Life:
        return lives.pop(lives.index(job))  # type: ignore[arg-type]

    def _drop(self, life: Life) -> None:
        """Free the KV blocks of a job; its whole context has to be prefilled again."""
        self.dropped.append(life)
        self._free(life)
        life.computed_tokens = 0
        life.decoding = False

    def own(self, tokens: list[tuple[Job, int]], now_s: float) -> list[tuple[Life, int]]:
        """The entries of a batch, if each is of a job in this replica and none occurs twice."""
        jobs = {id(job) for job, _ in tokens}
        if len(jobs) < len(tokens):
            twice = next(job for k, (job, _) in enumerate(tokens) if any(job is other for other, _ in tokens[:k]))
            raise self._refuse("it has more than one entry in the batch", twice, now_s)
        if not jobs <= set(map(id, self.running)):
            present = {id(life) for lives in (self.running, self.waiting) for life in lives}
            for job, _ in tokens:
                if id(job) not in present:
                    raise self._refuse("it is not in the engine", job, now_s)
        return cast(list[tuple[Life, int]], tokens)

    def start(self, entries: list[tuple[Life, int]], now_s: float) -> float:
        """Check a batch, hold its KV blocks, and tell how many seconds it takes by the engine model.

        Raises
        ------
        IllegalAllocationError
            The batch breaks a limit of the engine, or an entry means nothing.
        """
        engine = self.engine
        block = engine.block_size_tokens
        total = context = draft_steps = 0
        pairs = 0.0
        free = self.free_blocks
        fresh = []
        for life, tokens in entries:
            computed = life.computed_tokens
            total += tokens
            if life.decoding:
                context += computed
                if tokens != 1:
                    self._check_decode(life, tokens, now_s)
                    draft_steps = max(draft_steps, tokens - 1)
            else:
                if not 1 <= tokens <= life.known_tokens - computed:
                    rule = f"{tokens} tokens of prefill, {life.known_tokens - computed} left"
                    raise self._refuse(rule, life, now_s)
                pairs += prefill_pairs(tokens, computed)
            if life.kv_blocks * block < computed + tokens:
                blocks = -(-(computed + tokens) // block)
                if not life.kv_blocks:
                    fresh.append(life)
                free += life.kv_blocks - blocks
                life.kv_blocks = blocks
                if free < 0:
                    raise self._refuse(f"{-free} KV blocks more than the {engine.kv_blocks} there are", life, now_s)
        if total > engine.max_num_batched_tokens:
            rule = f"{total} tokens in a batch; the engine takes {engine.max_num_batched_tokens}"
            raise self._refuse(rule, entries[-1][0], now_s)
        if len(entries) > engine.max_num_seqs:
            rule = f"{len(entries)} requests in a batch; the engine takes {engine.max_num_seqs}"
            raise self._refuse(rule, entries[-1][0], now_s)
        for life in fresh:
            self.waiting.remove(life)
            self.running.append(life)
        self.free_blocks = free
        if self._cache is not None:
            for life in fresh:
                self._cache.begin(life)
            self._cache.shrink(free)
        return engine.batch_time_s(
            total,
            decode_context_tokens=context,
            prefill_pairs=pairs,
            num_requests=len(entries),
            draft_steps=draft_steps,
        )

    def _check_decode(self, life: Life, tokens: int, now_s: float) -> None:
        if tokens < 1:
            raise self._refuse(f"{tokens} tokens scheduled", life, now_s)
        if self._acceptance <= 0:
            raise self._refuse(f"{tokens} tokens for a decode; the engine has no draft model", life, now_s)

    def finish(
        self, entries: list[tuple[Life, int]], end_s: float, accepted: Callable[[int], int]
    ) -> tuple[list[int] | None, list[Life]]:
        """Produce the tokens of a batch at its end.

        Parameters
        ----------
        entries : list of (Life, int)
            As started.
        end_s : float
            End of the batch.
        accepted : callable
            Draws how many of so many drafted tokens are accepted.

        Returns
        -------
        emitted : list of int or None
            Output tokens that each decode produced (1 for prefills); None where nothing was speculated.
        ended : list of Life
            Whose round ended; they have left the replica.
        """
        emitted: list[int] = []
        ended: list[Life] = []
        speculated = False
        for life, tokens in entries:
            emits = 1
            if life.decoding:
                if tokens > 1:
                    speculated = True
                    emits = min(1 + accepted(tokens - 1), life.decode_left)
                life.computed_tokens += emits
            else:
                life.computed_tokens += tokens
                if self._cache is not None:
                    self._cache.store(life)
                emits = 1 if life.computed_tokens == life.known_tokens else 0
                # After a preemption, the last token that it had produced is again a decode step.
                life.decoding = life.emitted_tokens > 0 and life.left_tokens == 1
            emitted.append(emits or 1)
            if emits:
                life.decoding = True
                for _ in range(emits):
                    if life.emit(end_s):
                        ended.append(life)
                        break
        for life in ended:
            self._trim(life)
            self.num_lost += life.done and life.missed and life.value > 0
            self.finished.append(RoundEnd(life.id, life.round_slo, life.emitted_tokens, life.missed))
        if speculated:
            for life, _ in entries:
                self._return_unused(life)
        return (emitted if speculated else None), ended

    def _trim(self, life: Life) -> None:
        self.running.remove(life)
        self._free(life)

    def _free(self, life: Life) -> None:
        self.free_blocks += life.kv_blocks
        life.kv_blocks = 0
        if self._cache is not None:
            self._cache.release(life)

    def _return_unused(self, life: Life) -> None:
        """Free the blocks that were held for rejected drafts."""
        if life.kv_blocks:
            blocks = self.engine.kv_blocks_for(life.computed_tokens)
            self.free_blocks += life.kv_blocks - blocks
            life.kv_blocks = blocks


def fits(engine: EngineModel, life: Life, *, prefill_only: bool = False) -> bool:
    """Whether an engine could ever hold the whole context of a round, or its prompt and the first token after it."""
    context = life.known_tokens + (1 if prefill_only else life.decode_left)
    return context <= engine.max_model_len and engine.kv_blocks_for(context - 1) <= engine.kv_blocks
