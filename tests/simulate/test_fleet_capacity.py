"""The capacity of fleets: one replica behind a router is one replica; more serve more; the best design is found."""

import pytest

from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.registry import policy_entry
from slo_opt.routing.interface import Role
from slo_opt.routing.registry import router_entry
from slo_opt.simulate.capacity import CapacityOptions, find_capacity
from slo_opt.simulate.fleet_capacity import FleetDesign, designs_of, find_fleet_capacity
from slo_opt.simulate.workload import Workload

ENGINE = engine_named("llama-3-8b-a100")
OPTIONS = CapacityOptions(tolerance=0.2)


def workload(scenario: str = "coder", duration_s: float = 20.0) -> Workload:
    """A short one, generated."""
    return Workload(scenario, ENGINE, 1.0, duration_s, seed=3)


@pytest.mark.parametrize("policy", ["vllm-fcfs", "slo-opt"])
def test_a_fleet_of_one_has_the_capacity_of_one_replica(policy: str) -> None:
    alone = find_capacity(workload(), policy, OPTIONS)
    fleet = find_fleet_capacity(workload(), designs_of("round-robin", policy, 1), OPTIONS)
    assert fleet.rate == alone.rate > 0
    assert [probe["rate"] for probe in fleet.probes] == [probe["rate"] for probe in alone.probes]
    assert fleet.setting["setting"] == alone.setting


def test_two_replicas_serve_more_than_one() -> None:
    one, two = (
        find_fleet_capacity(workload(), [FleetDesign("round-robin", "slo-opt", num_both=count)], OPTIONS).rate
        for count in (1, 2)
    )
    assert two > 1.5 * one > 0


def test_the_better_of_two_designs_is_found() -> None:
    good = FleetDesign("join-shortest-queue", "slo-opt", num_both=2)
    bad = FleetDesign("round-robin", "vllm-fcfs", num_both=1, setting={"budget_tokens": 256})
    alone = find_fleet_capacity(workload(), [good], OPTIONS)
    both = find_fleet_capacity(workload(), [bad, good], OPTIONS)
    assert both.setting["router"] == "join-shortest-queue"
    assert both.settings_tried == 2
    assert both.rate >= alone.rate / (1 + OPTIONS.tolerance)


def test_designs_are_all_settings_and_splits_the_default_first() -> None:
    found = designs_of("aibrix-pack-load", "sarathi", 4, [(1, 3), (2, 2)])
    settings = len(router_entry("aibrix-pack-load").settings) * len(policy_entry("sarathi").settings)
    assert len(found) == 2 * settings
    assert found[0].router_setting == router_entry("aibrix-pack-load").settings[0]
    assert found[0].setting == policy_entry("sarathi").settings[0]
    assert {design.num_replicas for design in found} == {4}
    assert [role for _, role in found[0].replicas(ENGINE)] == [Role.PREFILL, *[Role.DECODE] * 3]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"router": "round-robin", "policy": "slo-opt"}, "a fleet of 0 replicas"),
        ({"router": "round-robin", "policy": "slo-opt", "num_both": -1, "num_prefill": 2}, "expected numbers >= 0"),
        ({"router": "round-robbin", "policy": "slo-opt", "num_both": 1}, "round-robin"),
        ({"router": "round-robin", "policy": "slo-oqt", "num_both": 1}, "slo-opt"),
    ],
)
def test_a_design_that_means_nothing_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        FleetDesign(**fields)  # type: ignore[arg-type]


def test_no_design_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no design"):
        find_fleet_capacity(workload(), [])
