"""A policy that asks for what the engine cannot do is stopped, and the message says who, when and which rule."""

import math
import re
from dataclasses import replace

import pytest
from watched import named

from slo_opt.domain.engines import engine_named
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import Allocation, Job
from slo_opt.simulate.replica import IllegalAllocationError
from slo_opt.simulate.simulator import SimulationOptions, simulate

INSTANCE = Instance(
    "four",
    tuple(Request(f"r{i}", 0.01 * i, (Stage(100, 20, "chat"),)) for i in range(4)),
    {"chat": SloClass("chat", 100.0, ttft_ms=1000.0)},
    replace(
        engine_named("llama-3-8b-a100"), max_num_batched_tokens=256, max_num_seqs=3, kv_blocks=30, block_size_tokens=16
    ),
)
DECIDED_LEGALLY = 3
GHOST = Job("ghost", "chat", "chat", 1.0, known_tokens=10)


class GoesWrong:
    """vLLM's rules for a few batches, then one that breaks a rule."""

    name = "goes-wrong"

    def __init__(self, wrong):
        self.wrong = wrong
        self.honest = named("vllm-fcfs", INSTANCE, budget_tokens=64)
        self.decisions = 0
        self.now_s = math.nan
        self.seen = {}

    def decide(self, snapshot):
        self.decisions += 1
        for job in (*snapshot.running, *snapshot.waiting):
            self.seen[job.id] = job
        ended = [self.seen[end.id] for end in snapshot.finished]
        last = self.wrong == "finished"
        if (self.decisions <= DECIDED_LEGALLY) if not last else not ended:
            return self.honest.decide(snapshot)
        self.now_s = snapshot.now_s
        first = snapshot.running[0] if snapshot.running else None
        waiting = snapshot.waiting[0] if snapshot.waiting else None
        left = 0 if waiting is None else waiting.left_tokens
        return {
            "budget": lambda: Allocation([(job, job.left_tokens) for job in (*snapshot.running, *snapshot.waiting)]),
            "sequences": lambda: Allocation([(job, 1) for job in (*snapshot.running, *snapshot.waiting)]),
            "foreign": lambda: Allocation([(GHOST, 1)]),
            "copied": lambda: Allocation([(Job(first.id, "chat", "chat", 1.0, known_tokens=10), 1)]),
            "finished": lambda: Allocation([(ended[0], 1)]),
            "twice": lambda: Allocation([(first, 1), (first, 1)]),
            "prefill": lambda: Allocation([(waiting, left + 1)]),
            "no prefill": lambda: Allocation([(waiting, 0)]),
            "drafts": lambda: Allocation([(first, 3)]),
            "no decode": lambda: Allocation([(first, 0)]),
            "preempts waiting": lambda: Allocation([(first, 1)], preempted=[waiting]),
            "preempts twice": lambda: Allocation(preempted=[first, first]),
            "rejects foreign": lambda: Allocation([(first, 1)], rejected=[GHOST]),
            "serves rejected": lambda: Allocation([(first, 1)], rejected=[first]),
            "admits foreign": lambda: Allocation([(first, 1)], admitted=[GHOST]),
            "demotes foreign": lambda: Allocation([(first, 1)], demoted=[GHOST]),
            "wake past": lambda: Allocation(wake_s=snapshot.now_s - 1.0),
            "wake now": lambda: Allocation(wake_s=snapshot.now_s),
            "wake never": lambda: Allocation(wake_s=math.nan),
        }[self.wrong]()


def refusal(wrong, instance=INSTANCE, **options):
    policy = GoesWrong(wrong)
    with pytest.raises(IllegalAllocationError) as caught:
        simulate(instance, policy, SimulationOptions(**options))
    message = str(caught.value)
    assert "policy 'goes-wrong'" in message
    assert f"at {policy.now_s:.6f} s" in message
    return message


@pytest.mark.parametrize(
    ("wrong", "request_id", "rule"),
    [
        ("sequences", "r3", "4 requests in a batch; the engine takes 3"),
        ("foreign", "ghost", "not in the engine"),
        ("copied", "r0", "not in the engine"),
        ("finished", "r0", "not in the engine"),
        ("twice", "r0", "more than one entry"),
        ("prefill", "r2", "101 tokens of prefill, 100 left"),
        ("no prefill", "r2", "0 tokens of prefill, 100 left"),
        ("drafts", "r0", "3 tokens for a decode; the engine has no draft model"),
        ("no decode", "r0", "0 tokens scheduled"),
        ("preempts waiting", "r2", "preempted but holds no KV"),
        ("preempts twice", "r0", "preempted but holds no KV"),
        ("rejects foreign", "ghost", "rejected but not in the engine"),
        ("serves rejected", "r0", "not in the engine"),
        ("admits foreign", "ghost", "admitted or demoted but not in the engine"),
        ("demotes foreign", "ghost", "admitted or demoted but not in the engine"),
    ],
)
def test_an_illegal_allocation_is_stopped(wrong, request_id, rule):
    message = refusal(wrong)
    assert f"for request '{request_id}'" in message
    assert re.search(rule, message), message


@pytest.mark.parametrize("wrong", ["wake past", "wake now", "wake never"])
def test_waking_in_the_past_is_stopped(wrong):
    assert "which is not later" in refusal(wrong)


def test_more_tokens_than_the_engine_takes_are_stopped():
    engine = replace(INSTANCE.engine, max_num_seqs=4, max_num_batched_tokens=128)
    message = refusal("budget", replace(INSTANCE, engine=engine))
    assert re.search(r"for request 'r3'.*2\d\d tokens in a batch; the engine takes 128", message), message


def test_more_kv_than_there_is_is_stopped():
    engine = replace(INSTANCE.engine, kv_blocks=12, max_num_seqs=4, max_num_batched_tokens=400)
    message = refusal("budget", replace(INSTANCE, engine=engine))
    assert re.search(r"for request 'r\d'.*\d+ KV blocks more than the 12 there are", message), message


def test_a_decode_of_no_tokens_is_stopped_under_speculation_too():
    assert "0 tokens scheduled" in refusal("no decode", acceptance=0.5)
