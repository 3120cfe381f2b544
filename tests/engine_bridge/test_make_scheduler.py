"""What `make_scheduler` makes: ours, or vLLM's own with one warning; a wrong configuration ends the start."""

import logging

import pytest
from needs_vllm import require_vllm
from test_bridge import workload

from slo_opt.domain.errors import InvalidInputError


@pytest.fixture
def arguments(tmp_path):
    """What vLLM calls a scheduler class with."""
    require_vllm()
    from vllm_parts import engine_config, scheduler_arguments

    config = engine_config(tmp_path, kv_blocks=64, block_size=16, max_model_len=512, max_num_batched_tokens=512)
    return scheduler_arguments(config)


def test_it_is_ours_on_top_of_vllms(arguments) -> None:
    from slo_opt.engine_bridge import make_scheduler

    scheduler = make_scheduler(**arguments)
    assert [kind.__name__ for kind in type(scheduler).__mro__[:3]] == ["SloScheduler", "SteeredScheduler", "Scheduler"]


@pytest.mark.parametrize("how", ["hook", "config", "probe"])
def test_it_is_vllms_own_with_one_warning(arguments, how, monkeypatch, caplog) -> None:
    from slo_opt.engine_bridge import scheduler as module

    def fails(*_: object) -> None:
        raise RuntimeError("no such thing as a scheduler")

    replaced = {
        "hook": ("missing_hooks", lambda base: ["running"]),
        "config": ("unsupported", lambda config: "a feature is in use"),
        "probe": ("missing_hooks", fails),
    }
    monkeypatch.setattr(module, *replaced[how])
    with caplog.at_level(logging.WARNING):
        made = module.make_scheduler(**arguments)
    assert type(made).__name__ == "Scheduler"
    warnings = [record for record in caplog.records if "slo-opt does not schedule" in record.getMessage()]
    assert len(warnings) == 1


def test_a_wrong_configuration_is_refused_at_the_start(arguments, tmp_path, monkeypatch) -> None:
    from slo_opt.engine_bridge import make_scheduler

    path = tmp_path / "wrong.toml"
    path.write_text("polcy = 1\n")
    monkeypatch.setenv("SLO_OPT_CONFIG", str(path))
    with pytest.raises(InvalidInputError, match=r"wrong\.toml: polcy"):
        make_scheduler(**arguments)


class FailingPolicy:
    """Fails every time."""

    name = "failing"

    def __init__(self, context) -> None:
        pass

    def decide(self, snapshot):
        raise RuntimeError("out of order")


class GreedyForBlocks(FailingPolicy):
    """Asks for more than there is."""

    def decide(self, snapshot):
        from slo_opt.policies.interface import Allocation

        return Allocation([(job, 10**6) for job in (*snapshot.running, *snapshot.waiting)])


@pytest.mark.parametrize(("policy", "reason"), [("FailingPolicy", "exception"), ("GreedyForBlocks", "impossible_plan")])
def test_a_broken_policy_leaves_the_steps_to_vllm(tmp_path, policy, reason) -> None:
    require_vllm()
    from test_live_scheduler import harness

    instance = workload("chatbot", 4.0, duration_s=3.0, kv_blocks=500)
    live = harness(tmp_path, instance, policy=f"test_make_scheduler:{policy}")
    live.serve(instance)
    assert set(live.counts.fallbacks) == {reason}
    assert all(len(live.ledgers[r.id].received) == r.output_tokens for r in instance.requests)
    assert live.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == instance.engine.kv_blocks
    assert len(live.bridge.roster) == 0
