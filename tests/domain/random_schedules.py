"""Random legal schedules, and a second reading of the token clock, for testing the evaluator against."""

import random
from dataclasses import dataclass, field

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.schedule import Batch
from slo_opt.domain.slo import ScoreRule


def batch_seconds(engine: EngineModel, tokens: int, context: int, pairs: int, requests: int, drafts: int) -> float:
    """The batch time written out anew."""
    lines = [p.base_s + p.per_token_s * tokens + p.per_draft_step_s * drafts for p in engine.pieces]
    extra = engine.decode_context_s * context + engine.prefill_pair_s * pairs + engine.request_s * requests
    return max(lines) + extra + engine.host_s


@dataclass
class Job:
    """One request under the random scheduler: what it has, and when each of its tokens came."""

    request: Request
    stage: int = 0
    known: int = 0
    ready_s: float = 0.0
    home: int | None = None
    tokens_s: list[list[float]] = field(default_factory=list)
    released_s: list[float] = field(default_factory=list)

    def begin(self, now_s: float) -> int:
        """Open the current stage; tokens that its KV cache starts with."""
        stage = self.request.stages[self.stage]
        self.ready_s = now_s + stage.pause_s
        self.tokens_s.append([])
        self.released_s.append(self.ready_s)
        if stage.prompt_tokens:
            self.known = stage.cached_tokens + stage.prompt_tokens
        return stage.cached_tokens

    @property
    def done(self) -> bool:
        return self.stage == len(self.request.stages)

    def left_in_decode(self) -> int:
        """Tokens until the request or its round ends."""
        phases: list[Stage] = [self.request.stages[self.stage]]
        for stage in self.request.stages[self.stage + 1 :]:
            if stage.prompt_tokens:
                break
            phases.append(stage)
        return sum(stage.output_tokens for stage in phases) - len(self.tokens_s[-1])


class RandomScheduler:
    """Serves requests at random within the limits: chunks, idle time, preemption, speculation, replicas."""

    def __init__(self, instance: Instance, rng: random.Random, *, speculate: bool, preempt: bool) -> None:
        self.instance, self.rng = instance, rng
        self.speculate, self.preempt = speculate, preempt
        self.jobs = [Job(request) for request in instance.requests]
        self.stored = [job.begin(job.request.arrival_s) for job in self.jobs]
        self.resident: list[set[int]] = [set() for _ in range(instance.num_replicas)]
        self.dropped: list[list[int]] = [[] for _ in range(instance.num_replicas)]  # preempted, not yet said so
        self.free_s = [0.0] * instance.num_replicas
        self.batches: list[Batch] = []

    def run(self, steps: int = 80) -> list[Batch]:
        """At most so many batches."""
        for _ in range(steps):
            if all(job.done for job in self.jobs):
                break
            self._step()
        return self.batches

    def _blocks(self, replica: int) -> int:
        size = self.instance.engine.block_size_tokens
        return sum((self.stored[i] + size - 1) // size for i in self.resident[replica])

    def _step(self) -> None:
        engine, rng = self.instance.engine, self.rng
        replica = min(range(self.instance.num_replicas), key=self.free_s.__getitem__)
        start_s = self.free_s[replica] + (rng.random() * 0.05 if rng.random() < 0.3 else 0.0)
        open_jobs = [i for i, job in enumerate(self.jobs) if not job.done and job.home in (None, replica)]
        ready = [i for i in open_jobs if self.jobs[i].ready_s <= start_s]
        if not ready:
            self.free_s[replica] = min((self.jobs[i].ready_s for i in open_jobs), default=start_s + 0.05)
            return
        self._drop(replica, [i for i in sorted(self.resident[replica]) if self.preempt and rng.random() < 0.04])
        entries = self._fill(replica, ready)
        if not entries and self.preempt:  # what is resident leaves no room
            self._drop(replica, sorted(self.resident[replica]))
            entries = self._fill(replica, ready)
        if not entries:
            self.free_s[replica] = start_s + 0.01
            return
        preempted, self.dropped[replica] = self.dropped[replica], []
        for i in preempted:
            self.jobs[i].ready_s = max(self.jobs[i].ready_s, start_s)
            if i not in self.resident[replica]:
                self.jobs[i].home = None
        context = sum(past for _, _, _, past, decoding in entries if decoding)
        drafts = max((size - 1 for _, size, _, _, decoding in entries if decoding), default=0)
        pairs = sum(sum(range(past + 1, past + size + 1)) for _, size, _, past, decoding in entries if not decoding)
        total = sum(size for _, size, _, _, _ in entries)
        end_s = start_s + batch_seconds(engine, total, context, pairs, len(entries), drafts)
        emitted = [emits for _, _, emits, _, _ in entries] if self.speculate else None
        indices, sizes = [i for i, *_ in entries], [size for _, size, *_ in entries]
        self.batches.append(Batch(start_s, indices, sizes, emitted, preempted, replica))
        self.free_s[replica] = end_s
        for i, _, emits, _, _ in entries:
            for _ in range(emits):
                self._emit(replica, i, end_s)

    def _drop(self, replica: int, victims: list[int]) -> None:
        for i in victims:
            self.resident[replica].discard(i)
            self.stored[i] = 0
        self.dropped[replica] += victims

    def _fill(self, replica: int, ready: list[int]) -> list[tuple[int, int, int, int, bool]]:
        """Entries of a batch: request, tokens, emitted, past tokens, whether a decode."""
        engine, rng = self.instance.engine, self.rng
        entries: list[tuple[int, int, int, int, bool]] = []
        budget = engine.max_num_batched_tokens
        for i in rng.sample(ready, len(ready)):
            job, past = self.jobs[i], self.stored[i]
            left = job.known - past
            continued = job.request.stages[job.stage].prompt_tokens == 0
            decoding = left == 1 and (bool(job.tokens_s[-1]) or continued)
            if budget == 0 or len(entries) == engine.max_num_seqs or (entries and rng.random() < 0.15):
                continue
            if decoding:
                size = rng.randint(1, min(4, budget)) if self.speculate else 1
                emits = rng.randint(1, min(size, job.left_in_decode()))
                stores = emits
            else:
                size = min(budget, left if rng.random() < 0.6 else rng.randint(1, left))
                emits, stores = int(size == left), size
            was_resident = i in self.resident[replica]
            self.stored[i] += stores
            self.resident[replica].add(i)
            if self._blocks(replica) > engine.kv_blocks:
                self.stored[i] = past
                if not was_resident:
                    self.resident[replica].discard(i)
                continue
            job.home = replica
            budget -= size
            entries.append((i, size, emits, past, decoding))
        return entries

    def _emit(self, replica: int, i: int, now_s: float) -> None:
        job = self.jobs[i]
        job.known += 1
        job.tokens_s[-1].append(now_s)
        if len(job.tokens_s[-1]) < job.request.stages[job.stage].output_tokens:
            return
        job.stage += 1
        if job.done or job.request.stages[job.stage].prompt_tokens:
            self.resident[replica].discard(i)
            job.home = None
        if not job.done:
            cached = job.begin(now_s)
            if job.request.stages[job.stage].prompt_tokens:
                self.stored[i] = cached


def attained(instance: Instance, job: Job) -> bool:
    """The score rules written out anew, from the list of token times."""
    if not job.done or instance.slo_classes[job.request.stages[-1].slo].best_effort:
        return False
    rule, small = instance.score_rule, 1e-7
    zero = 0.0  # due time of a token that would come one TPOT before the first of the phase
    for s, (stage, times, released_s) in enumerate(zip(job.request.stages, job.tokens_s, job.released_s, strict=True)):
        tpot_s = instance.slo_classes[stage.slo].tpot_ms / 1e3
        count = len(times)
        ttft_s = instance.ttft_limit_s(stage) if stage.prompt_tokens else 0.0
        if rule is ScoreRule.MEAN_TPOT:
            if stage.prompt_tokens:
                fine = times[0] <= released_s + ttft_s + small
                span_s, steps = times[-1] - times[0], count - 1
            else:
                fine = True
                span_s, steps = times[-1] - job.tokens_s[s - 1][-1], count
            if not fine or span_s > steps * tpot_s + small:
                return False
            continue
        if rule is ScoreRule.FIRST_LATE_SHIFTS:
            tpot_s *= 1.05
        if stage.prompt_tokens:
            due_s = released_s + ttft_s
            if rule is ScoreRule.FIRST_LATE_SHIFTS:
                if times[0] > released_s + 1.05 * ttft_s + small:
                    return False
                due_s = max(due_s, times[0])
            zero = due_s - tpot_s
        if any(time_s > zero + n * tpot_s + small for n, time_s in enumerate(times, start=1)):
            return False
        zero += count * tpot_s
    return True
