"""A class outside the registry is named as module:Class, and a disturbed queue starts anew."""

import pytest

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.interface import Job
from slo_opt.policies.lengths import NoLengths
from slo_opt.policies.registry import PolicyContext, full_setting, make_policy
from slo_opt.policies.waiting import WaitingQueue
from slo_opt.simulate.simulator import simulate
from slo_opt.traces.generate import generate

OWN = "own_policy:ShortestPromptFirst"


def test_a_class_of_ones_own_runs_by_name() -> None:
    instance = generate("chatbot", rate=2.0, duration_s=20.0, engine="llama-3-8b-a100", seed=1).to_instance()
    context = PolicyContext(instance.engine, instance.slo_classes, NoLengths())
    run = simulate(instance, make_policy(OWN, context, {"slack": 0.9}))
    assert run.policy == "shortest-prompt-first"
    assert run.evaluation.legal
    assert run.finished.all()
    assert full_setting(OWN) == {"slack": 1.0}


@pytest.mark.parametrize("name", ["no_such_module:Policy", "own_policy:NoSuchClass", ":", "own_policy:", ":Policy"])
def test_what_cannot_be_loaded_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="module:Class"):
        full_setting(name)


def test_a_disturbed_queue_forgets_who_is_gone() -> None:
    gone, kept, back = (Job(name, "a", "a", 1.0, release_s=float(k), known_tokens=5) for k, name in enumerate("gkb"))
    queue = WaitingQueue(lambda job: job.release_s)
    queue.sync([gone, kept, back])
    queue.remove(back)  # begun by the decision
    queue.sync([back, kept], True)  # but not by the engine; and one was aborted: as many as the queue knows of
    assert {job.id for job in queue.under_slo()} == {"k", "b"}
    assert queue.tokens == 10
