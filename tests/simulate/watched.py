"""Policies for testing the simulator: one that does anything legal, and one that checks every state it is shown."""

import math
import random
from dataclasses import replace

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import ScoreRule
from slo_opt.policies.batch import BatchBuilder
from slo_opt.policies.interface import Allocation, AllocationPolicy, EngineSnapshot, Job
from slo_opt.policies.lengths import NoLengths
from slo_opt.policies.registry import PolicyContext, make_policy
from slo_opt.simulate.life import Life
from slo_opt.traces.small import small_instance


def named(name: str, instance: Instance, **setting: int) -> AllocationPolicy:
    """A policy of the registry, for an instance."""
    return make_policy(name, PolicyContext(instance.engine, instance.slo_classes, NoLengths()), setting)


def drawn_instance(rng: random.Random, max_requests: int = 10) -> Instance:
    """A small random instance under any score rule, with limits from hopeless to slack."""
    instance = small_instance(rng, max_requests=max_requests, score_rule=rng.choice(list(ScoreRule)))
    classes = {
        name: replace(slo, tpot_ms=slo.tpot_ms * factor, ttft_ms=400.0 * factor, ttft_slowdown=None)
        for name, slo in instance.slo_classes.items()
        for factor in [rng.choice([0.7, 1.5, 5.0])]
    }
    return replace(instance, slo_classes=classes)


class RandomPolicy:
    """Any legal allocation: chunks of any size, idle time, preemption, rejection, drafts.

    Parameters
    ----------
    rng : random.Random
        Source of all choices.
    reject : bool
        Whether requests are sent away now and then.
    """

    name = "random"

    def __init__(self, rng: random.Random, *, reject: bool = False) -> None:
        self._rng = rng
        self._reject = reject
        self._left = 500  # decisions, then it serves nobody: chance alone need not end

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        rng, now_s = self._rng, snapshot.now_s
        self._left -= 1
        if self._left < 0:
            return Allocation()
        if rng.random() < 0.05:
            return Allocation(wake_s=now_s + rng.uniform(1e-6, 0.05))
        batch = BatchBuilder(snapshot)
        rejected = [job for job in self._jobs(snapshot) if self._reject and rng.random() < 0.03]
        preempted = [job for job in snapshot.running if job not in rejected and rng.random() < 0.03]
        for job in (*rejected, *preempted):
            batch.drop(job)
        for job in self._jobs(snapshot):
            if job not in rejected and job not in preempted and rng.random() < 0.9:
                batch.add(job, min(self._tokens(job, snapshot), batch.tokens_left))
        if not batch.entries:
            preempted = [job for job in snapshot.running if job not in rejected]
        changed = [job for job in self._jobs(snapshot) if job not in rejected and rng.random() < 0.1]
        return Allocation(
            batch.entries,
            preempted=preempted,
            rejected=rejected,
            admitted=[job for job in changed if rng.random() < 0.5],
            demoted=[job for job in changed if rng.random() < 0.3],
            wake_s=now_s + 0.01,
        )

    def _jobs(self, snapshot: EngineSnapshot) -> list[Job]:
        jobs = [*snapshot.running, *snapshot.waiting]
        return self._rng.sample(jobs, len(jobs))

    def _tokens(self, job: Job, snapshot: EngineSnapshot) -> int:
        if job.decoding:
            return self._rng.randint(1, 4) if snapshot.acceptance else 1
        return job.left_tokens if self._rng.random() < 0.6 else self._rng.randint(1, job.left_tokens)


class WatchedPolicy:
    """Lets another policy decide, and checks each state against what the decisions before it must lead to.

    Parameters
    ----------
    policy : AllocationPolicy
        Who decides.
    slowdown : float
        Factor by which every batch must outlast the engine model; NaN where batch times are noisy.

    Attributes
    ----------
    jobs : dict of str to Life
        Every request that was shown.
    starts_s, batches_s : list of float
        Start and duration that each batch must have.
    """

    def __init__(self, policy: AllocationPolicy, slowdown: float = 1.0) -> None:
        self._policy = policy
        self._slowdown = slowdown
        self.name = policy.name
        self.jobs: dict[str, Life] = {}
        self.starts_s: list[float] = []
        self.batches_s: list[float] = []
        self._kept: dict[tuple[str, int], tuple[int, int]] = {}

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """As the other policy."""
        self._check_blocks(snapshot)
        self._check_tokens(snapshot)
        self._check_time(snapshot)
        allocation = self._policy.decide(snapshot)
        self._expect(snapshot, allocation)
        return allocation

    def _check_blocks(self, snapshot: EngineSnapshot) -> None:
        engine = snapshot.engine
        held = 0
        for job in snapshot.running:
            assert job.kv_blocks == engine.kv_blocks_for(job.computed_tokens) > 0
            held += job.kv_blocks
        assert all(job.kv_blocks == 0 for job in snapshot.waiting)
        assert held + snapshot.free_kv_blocks == engine.kv_blocks
        ids = [job.id for job in (*snapshot.running, *snapshot.waiting)]
        assert len(set(ids)) == len(ids)

    def _check_tokens(self, snapshot: EngineSnapshot) -> None:
        for job in (*snapshot.running, *snapshot.waiting):
            assert isinstance(job, Life)
            self.jobs[job.id] = job
            assert job.release_s <= snapshot.now_s
            assert job.known_tokens == job.cached_tokens + job.prompt_tokens + job.emitted_tokens
            assert job.left_tokens >= 1
            assert job.decoding == (job.emitted_tokens > 0 and job.left_tokens == 1)
            least = most = job.cached_tokens  # what the prefix cache holds may change until the job begins
            if job.kv_blocks or job.preemptions:
                least, most = self._kept.get((job.id, job.round), (least, most))
            assert least <= job.computed_tokens <= most

    def _check_time(self, snapshot: EngineSnapshot) -> None:
        if not self.starts_s:
            assert snapshot.last_batch_s is None
            return
        if math.isnan(self._slowdown):
            self.batches_s[-1] = snapshot.last_batch_s
        assert snapshot.last_batch_s == self.batches_s[-1]
        assert snapshot.now_s >= self.starts_s[-1] + self.batches_s[-1]

    def _expect(self, snapshot: EngineSnapshot, allocation: Allocation) -> None:
        """Bounds on the tokens in KV that each job must have next, and how long the batch must take."""
        for job in (*snapshot.running, *snapshot.waiting):
            dropped = any(job is other for other in (*allocation.preempted, *allocation.rejected))
            past = 0 if dropped else job.computed_tokens
            self._kept[job.id, job.round] = (past, past)
        context = drafts = 0
        pairs = 0.0
        for job, tokens in allocation.tokens:
            past = self._kept[job.id, job.round][0]
            if job.decoding and past:
                context += past
                drafts = max(drafts, tokens - 1)
                self._kept[job.id, job.round] = (past + 1, past + tokens)
            else:
                pairs += prefill_pairs(tokens, past)
                self._kept[job.id, job.round] = (past + tokens, past + tokens)
        if allocation.tokens:
            model_s = snapshot.engine.batch_time_s(
                sum(tokens for _, tokens in allocation.tokens),
                decode_context_tokens=context,
                prefill_pairs=pairs,
                num_requests=len(allocation.tokens),
                draft_steps=drafts,
            )
            self.starts_s.append(snapshot.now_s)
            self.batches_s.append(model_s * self._slowdown)
