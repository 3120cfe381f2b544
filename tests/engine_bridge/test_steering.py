"""Steering of vLLM's real scheduler: what a plan changes, what is restored, and what happens when things go wrong."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it and runs this")

from fidelity import planning
from harness import EngineSettings, Harness, loaded_harness

from slo_opt.engine_bridge.steering import (
    StepPlan,
    cached_tokens,
    engine_limits,
    free_kv_blocks,
    held_blocks,
    missing_hooks,
    next_tokens,
    refuse,
    request_state,
    steered,
    unsupported,
    waiting_requests,
)

TOUCHED = ("waiting", "kv_holding_waiting", "skipped_waiting", "policy", "max_num_scheduled_tokens")
TOUCHED += ("need_mamba_block_aligned_split", "dynamic_sd_lookup", "_mamba_in_use", "_token_caps")


def _names(requests):
    return [request.request_id for request in requests]


def _touched(scheduler):
    said = {name: getattr(scheduler, name) for name in TOUCHED if hasattr(scheduler, name)}
    return said | {"threshold": scheduler.scheduler_config.long_prefill_token_threshold}


def _step(harness, *tokens, **more):
    harness.scheduler.plan = StepPlan(list(tokens), **more)
    output = harness.step()
    harness.scheduler.plan = None
    return output


@pytest.fixture
def harness(tmp_path):
    """Three requests, one of them decoding."""
    made = Harness(tmp_path, EngineSettings(), planning)
    for name in ("first", "second", "third"):
        made.add(name, 40, 5)
    _step(made, ("second", 40))
    return made


def test_without_plans_every_batch_is_vllms_own(tmp_path):
    batches = []
    for steer in (lambda base: base, planning):
        made = Harness(tmp_path, EngineSettings(kv_blocks=24, max_num_batched_tokens=64), steer)
        for k in range(12):
            made.add(f"r{k}", 10 + 7 * k, 40)
        rows = []
        while made.scheduler.has_unfinished_requests():
            rows.append(dict(made.step().num_scheduled_tokens))
        batches.append(rows)
    assert batches[0] == batches[1]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_everything_is_restored_after_a_planned_step(tmp_path, policy):
    made = Harness(tmp_path, EngineSettings(long_prefill_tokens=8, scheduling_policy=policy, draft_tokens=2), planning)
    for name in ("first", "second", "third"):
        made.add(name, 40, 5)
    scheduler = made.scheduler
    before = _touched(scheduler)
    _step(made, ("third", 40), ("first", 3))
    assert _touched(scheduler) == before
    assert all(_touched(scheduler)[name] is value for name, value in before.items())
    assert _names(scheduler.running) == ["third", "first"]
    assert _names(waiting_requests(scheduler)) == ["second"]
    _step(made, ("first", 37), ("third", 1))
    assert _names(scheduler.running) == ["third", "first"]
    assert not scheduler.told


def test_an_exception_of_vllm_goes_on_and_leaves_nothing_behind(harness):
    scheduler = harness.scheduler
    before = _touched(scheduler)
    allocate = scheduler.kv_cache_manager.allocate_slots

    def broken(*args, **kwargs):
        raise RuntimeError("out of order")

    scheduler.kv_cache_manager.allocate_slots = broken
    with pytest.raises(RuntimeError, match="out of order"):
        _step(harness, ("first", 40), ("second", 1))
    assert _touched(scheduler) == before
    assert _names(scheduler.running) == ["second"]
    assert _names(waiting_requests(scheduler)) == ["first", "third"]
    scheduler.kv_cache_manager.allocate_slots = allocate
    scheduler.plan = None
    assert harness.step().num_scheduled_tokens == {"second": 1, "first": 40, "third": 40}


@pytest.mark.parametrize("where", ["next_plan", "scheduled", "imposing the plan"])
def test_our_exceptions_never_reach_the_engine(tmp_path, where):
    failed = []

    def steer(base):
        class Failing(steered(base)):
            def next_plan(self):
                if where == "next_plan":
                    raise ValueError(where)
                return StepPlan([("a", 10)]) if where == "scheduled" else StepPlan([("a", "ten")])

            def scheduled(self, plan, output, deviations):
                raise ValueError(where)

            def steering_failed(self, where, error):
                failed.append(where)

        return Failing

    made = Harness(tmp_path, EngineSettings(), steer)
    made.add("a", 20, 2)
    before = _touched(made.scheduler)
    output = made.step()
    assert failed == [where]
    assert output.num_scheduled_tokens == {"a": 10 if where == "scheduled" else 20}
    assert _touched(made.scheduler) == before


def test_unreachable_parts_are_left_out_and_told(harness):
    scheduler = harness.scheduler
    _step(harness, ("nobody", 5), ("second", 3), ("first", 100), ("third", 0))
    assert scheduler.told.missing == ("nobody",)
    assert scheduler.told.fewer == ("second",)  # no drafts to verify
    assert scheduler.told.cached == ("first",)  # its prompt has 40 tokens
    assert scheduler.told.counts() == {"missing": 1, "fewer": 1}


def test_more_requests_than_vllm_may_run(tmp_path):
    made = Harness(tmp_path, EngineSettings(max_num_seqs=2), planning)
    for name in "abc":
        made.add(name, 20, 3)
    _step(made, ("c", 20), ("b", 20), ("a", 20))
    assert made.scheduler.told.missing == ("a",)
    assert _names(made.scheduler.running) == ["c", "b"]


def test_preempted_requests_wait_one_step_at_least(harness):
    scheduler = harness.scheduler
    free = free_kv_blocks(scheduler)
    held = held_blocks(scheduler, scheduler.requests["second"])
    output = _step(harness, ("second", 1), ("first", 4), preempt=["second", "third", "nobody"])
    assert output.num_scheduled_tokens == {"first": 4}
    assert free_kv_blocks(scheduler) == free + held - 1
    assert _names(waiting_requests(scheduler)) == ["second", "third"]
    assert output.preempted_req_ids == {"second"}


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_when_blocks_run_out_the_named_victim_goes_first(tmp_path, policy):
    made = Harness(tmp_path, EngineSettings(kv_blocks=12, block_size=16, scheduling_policy=policy), planning)
    for name in "abcd":
        made.add(name, 48, 40)
    _step(made, *((name, 48) for name in "abcd"))
    assert free_kv_blocks(made.scheduler) == 0
    _step(made, ("a", 1), victims=["c", "b"])
    assert made.scheduler.told.preempted == ("c",)
    assert _names(made.scheduler.running) == ["a", "b", "d"]


def test_a_refused_request_is_answered_at_once_on_an_idle_engine(tmp_path):
    made = Harness(tmp_path, EngineSettings(), planning)
    request = made.add("a", 20, 3, client_index=2)
    refuse(made.scheduler, request, "cannot be on time")
    refuse(made.scheduler, request, "twice")
    assert not made.scheduler.has_unfinished_requests()
    assert made.scheduler.has_requests()  # so the engine core runs a step
    made.step()
    assert (made.ledgers["a"].finish_reason, made.ledgers["a"].stop_reason) == ("abort", "cannot be on time")
    assert not made.scheduler.has_requests()


def test_a_running_request_can_be_refused_with_its_batch_in_flight(tmp_path):
    made = Harness(tmp_path, EngineSettings(asynchronous=True), planning)
    request = made.add("a", 20, 30)
    made.add("b", 20, 3)
    for _ in range(3):
        made.step()
    refuse(made.scheduler, request, "late")
    while made.scheduler.has_unfinished_requests():
        made.step()
    made.drain()
    assert made.ledgers["a"].stop_reason == "late"
    assert len(made.ledgers["b"].received) == 3
    assert free_kv_blocks(made.scheduler) == made.settings.kv_blocks


def test_state_counts_what_is_in_flight(tmp_path):
    made = Harness(tmp_path, EngineSettings(asynchronous=True, draft_tokens=3), planning)
    request = made.add("a", 20, 30)
    _step(made, ("a", 12))
    state = request_state(request)
    assert (state.known_tokens, state.computed_tokens, state.output_tokens, state.decoding) == (20, 12, 0, False)
    _step(made, ("a", 8))
    state = request_state(request)
    assert (state.known_tokens, state.computed_tokens, state.output_tokens, state.decoding) == (21, 20, 1, True)
    assert (state.draft_tokens, next_tokens(made.scheduler, request)) == (3, 4)
    output = _step(made, ("a", 3))
    assert [len(drafts) for drafts in output.scheduled_spec_decode_tokens.values()] == [2]
    assert made.scheduler._spec_token_placeholders == [-1] * 3


def test_a_decode_held_back_loses_drafts_that_only_the_worker_knows(tmp_path):
    made = Harness(tmp_path, EngineSettings(asynchronous=True, draft_tokens=3), planning)
    request = made.add("a", 20, 30)
    made.add("b", 20, 30)
    _step(made, ("a", 20))
    _step(made, ("b", 20))
    assert request_state(request).draft_tokens == 0
    assert made.scheduler._spec_token_placeholders == [-1] * 3
    output = _step(made, ("a", 1))
    assert output.num_scheduled_tokens == {"a": 1}


def test_nothing_is_left_to_do_once_the_batches_in_flight_suffice(tmp_path):
    made = Harness(tmp_path, EngineSettings(asynchronous=True), planning)
    request = made.add("a", 20, 2)
    made.step()
    assert next_tokens(made.scheduler, request) == 1
    made.step()
    assert next_tokens(made.scheduler, request) == 0


def test_looking_up_the_prefix_cache_leaves_no_trace(tmp_path):
    made = Harness(tmp_path, EngineSettings(prefix_caching=True, log_stats=True), planning)
    prompt = list(range(64))
    made.add("a", prompt, 1)
    made.step()
    request = made.add("b", [*prompt, 1, 2, 3], 5)
    manager = made.scheduler.kv_cache_manager
    before = vars(manager.prefix_cache_stats).copy(), manager.block_pool.get_num_free_blocks()
    assert cached_tokens(made.scheduler, request) == 64
    assert (vars(manager.prefix_cache_stats), manager.block_pool.get_num_free_blocks()) == before
    _step(made, ("b", 3))
    assert not made.scheduler.told
    assert request_state(request).computed_tokens == 67


def test_a_request_whose_grammar_is_compiled_becomes_schedulable(tmp_path):
    from vllm.v1.request import RequestStatus

    made = Harness(tmp_path, EngineSettings(), planning)
    scheduler = made.scheduler
    request = made.add("a", 20, 3)
    made.add("b", 20, 3)
    scheduler.waiting.remove_request(request)
    request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    request.structured_output_request = SimpleNamespace(grammar=None)
    scheduler._enqueue_waiting_request(request)
    assert _names(waiting_requests(scheduler)) == ["b"]
    _step(made, ("a", 20), ("b", 20))
    assert scheduler.told.missing == ("a",)
    request.structured_output_request = SimpleNamespace(grammar=object())
    _step(made)  # an empty plan: nobody gets anything
    assert _names(waiting_requests(scheduler)) == ["a"]
    request.structured_output_request = None
    assert _step(made, ("a", 20)).num_scheduled_tokens == {"a": 20}


def test_a_paused_engine_is_not_asked(tmp_path):
    from vllm.v1.core.sched.interface import PauseState

    made = Harness(tmp_path, EngineSettings(), planning)
    made.add("a", 20, 3)
    made.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    assert not _step(made, ("a", 20)).num_scheduled_tokens
    assert made.scheduler.told is None


def test_limits_are_those_of_the_settings(tmp_path):
    made = Harness(tmp_path, EngineSettings(kv_blocks=77, max_num_seqs=9, draft_tokens=2), planning)
    limits = engine_limits(made.scheduler)
    assert (limits.kv_blocks, limits.block_size_tokens, limits.max_num_seqs) == (77, 16, 9)
    assert (limits.max_num_batched_tokens, limits.max_model_len, limits.draft_tokens) == (512, 2048, 2)
    assert limits.kv_blocks == free_kv_blocks(made.scheduler)


def test_a_loaded_engine_decodes_and_has_a_queue(tmp_path):
    made = loaded_harness(tmp_path, 20, 50, planning)
    assert sum(request_state(one).decoding for one in made.scheduler.running) == 20
    assert len(list(waiting_requests(made.scheduler))) == 50
    assert len(made.step().num_scheduled_tokens) == 20


def test_the_probe_finds_all_hooks_and_names_a_missing_one(tmp_path):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    assert missing_hooks(Scheduler) == missing_hooks(AsyncScheduler) == []

    class Rewritten:
        def __init__(self):
            self.running = []

        def schedule(self):
            return self.running

    said = missing_hooks(Rewritten)
    assert "Rewritten._preempt_request" in said
    assert "Rewritten.schedule does not use _mamba_block_aligned_split" in said
    assert "Rewritten.schedule does not use running" not in said


def test_engines_that_are_not_steered_say_why(harness):
    assert unsupported(harness.config) is None
    harness.config.parallel_config.pipeline_parallel_size = 2
    assert "pipeline" in unsupported(harness.config)
    harness.config.parallel_config.pipeline_parallel_size = 1
    harness.config.scheduler_config.enable_chunked_prefill = False
    assert "chunks" in unsupported(harness.config)
