"""Verdicts on runs, and capacities whose claims are tried again."""

from dataclasses import replace

import numpy as np
import pytest

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request, Stage
from slo_opt.domain.slo import SloClass
from slo_opt.policies import registry
from slo_opt.policies.registry import POLICIES, PolicyEntry
from slo_opt.simulate.capacity import CapacityOptions, find_capacity
from slo_opt.simulate.metrics import IllegalRunError
from slo_opt.simulate.play import play
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions
from slo_opt.simulate.verdict import confirmed, judge, max_lost, needed
from slo_opt.simulate.workload import Workload

ENGINE = engine_named("llama-3-8b-a100")
COUNT = 100


@pytest.fixture(scope="module")
def run() -> Run:
    """100 requests, all on time, and one under no SLO in their midst."""
    classes = {
        "chat": SloClass("chat", 100.0, ttft_ms=2000.0),
        "spare": SloClass("spare", 100.0, ttft_ms=2000.0, best_effort=True),
    }
    requests = [Request(f"r{k}", float(k), (Stage(50, 3, "chat"),)) for k in range(COUNT)]
    requests.insert(50, Request("free", 49.5, (Stage(50, 3, "spare"),)))
    instance = Instance("easy", tuple(requests), classes, ENGINE)
    return play(instance, "vllm-fcfs")


def losing(run: Run, lost: range) -> Run:
    """The run as if these of the requests under an SLO had been late."""
    counted = [k for k, request in enumerate(run.instance.requests) if run.instance.value_of(request)]
    on_time = run.on_time.copy()
    on_time[[counted[k] for k in lost]] = False
    return replace(run, on_time=on_time)


def test_exactly_the_target_passes_and_one_less_does_not(run: Run):
    assert judge(run, 1.0).passed
    assert (judge(run, 0.9).offered, judge(run, 0.9).attained, judge(run, 0.9).late_attained) == (COUNT, COUNT, 25)
    assert judge(losing(run, range(10)), 0.9).passed
    verdict = judge(losing(run, range(11)), 0.9)
    assert (verdict.passed, verdict.reason, verdict.attained) == (False, "attainment", 89)


def test_losses_at_the_end_fail_and_the_same_losses_elsewhere_do_not(run: Run):
    assert judge(losing(run, range(0, 60, 6)), 0.9).passed
    verdict = judge(losing(run, range(90, 100)), 0.9)
    assert (verdict.passed, verdict.reason, verdict.late_attained) == (False, "late-arrivals", 15)
    # 0.9 - 1.645 * sqrt(0.09 / 25) = 0.801: 21 of 25 are within sampling error, 20 are not.
    assert judge(losing(run, range(75, 79)), 0.9).passed
    assert not judge(losing(run, range(75, 80)), 0.9).passed


def test_whoever_is_left_over_fails_the_run_unless_rejected(run: Run):
    late = losing(run, range(1))
    left = replace(late, finished=np.concatenate([[False], late.finished[1:]]))
    assert judge(left, 0.9).reason == "left-over"
    assert judge(replace(left, rejected=(0,)), 0.9).passed
    free = replace(run, finished=np.array([r.id != "free" for r in run.instance.requests]))
    assert judge(free, 0.9).passed, "best effort is under no SLO"


def test_a_cut_run_fails(run: Run):
    verdict = judge(replace(run, cut=True), 0.5)
    assert (verdict.passed, verdict.attained) == (False, None)


def test_counts_needed():
    assert [needed(count, 0.9) for count in (1, 10, 11, 100, 559)] == [1, 9, 10, 90, 504]
    assert needed(10, 1.0) == 10
    for target in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInputError, match="target"):
            needed(10, target)
    with pytest.raises(InvalidInputError, match="no request is under an SLO"):
        needed(0, 0.9)


def test_losses_allowed_leave_out_best_effort(run: Run):
    assert max_lost(run.instance, 0.9) == 10


def test_a_run_that_the_checker_counts_differently_is_refused(run: Run):
    assert confirmed(run) is run
    with pytest.raises(IllegalRunError, match="disagree on request 'r3'"):
        confirmed(losing(run, range(3, 4)))


@pytest.mark.parametrize(("scenario", "policy"), [("coder", "vllm-fcfs"), ("mixed", "edf"), ("toolllm", "sarathi")])
def test_the_claims_of_a_capacity_hold(scenario: str, policy: str):
    workload = Workload(scenario, engine_named("opt-6.7b-a100"), 1.0, 20.0, seed=1)
    found = find_capacity(workload, policy, CapacityOptions(tolerance=0.1))

    def verdict(setting, rate):
        instance = replace(workload, rate=rate).instance()
        return judge(play(instance, policy, setting, options=SimulationOptions(seed=1)), 0.9)

    assert verdict(found.setting, found.rate) == found.verdict
    assert found.fails_at is not None
    assert found.rate < found.fails_at <= found.rate * 1.1
    assert not verdict(found.setting, found.fails_at).passed
    # A setting that was passed over failed where it was tried, at most the tolerance above a rate reached before.
    settings = POLICIES[policy].settings
    assert found.settings_tried == len(settings)
    for number, setting in enumerate(settings):
        tried = [probe for probe in found.probes if probe["setting"] == number]
        assert tried
        for probe in tried[:2]:
            assert verdict(setting, probe["rate"]).passed == probe["passed"]
        assert number == 0 or tried[0]["rate"] <= found.rate * 1.1 * (1 + 1e-9)


def test_speculation_and_noise_reach_the_engine():
    workload = Workload("coder", ENGINE, 1.0, 20.0)
    plain = find_capacity(workload, "vllm-fcfs", CapacityOptions(tolerance=0.2))
    slow = find_capacity(workload, "vllm-fcfs", CapacityOptions(0.9, 0.2, "none", SimulationOptions(slowdown=2.0)))
    assert 0 < slow.rate < plain.rate


def test_a_policy_that_attains_nothing_has_capacity_zero(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.POLICIES, "reject-all", PolicyEntry("reject-all", "", "sweep_units:RejectAll"))
    found = find_capacity(Workload("coder", ENGINE, 1.0, 20.0), "reject-all")
    assert (found.rate, found.verdict, found.monotone) == (0.0, None, True)
    assert not any(probe["passed"] for probe in found.probes)


def test_a_workload_that_nothing_can_attain_is_refused():
    slow = EngineModel("slow", "", (RooflinePiece(1e-4, 2.0),))
    with pytest.raises(InvalidInputError, match="can attain any of"):
        find_capacity(Workload("polyserve", slow, 1.0, 20.0), "vllm-fcfs")


def test_a_rate_is_never_judged_by_a_handful_of_requests():
    found = find_capacity(Workload("polyserve", engine_named("opt-6.7b-a100"), 1.0, 20.0), "edf")
    assert min(probe["rate"] for probe in found.probes) * 20.0 >= 20
