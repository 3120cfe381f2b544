"""Every router and every policy on random fleets: legal, with nobody left over, and the page's example runs."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import drawn_instance

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.registry import POLICIES
from slo_opt.routing.interface import Role
from slo_opt.routing.registry import ROUTERS
from slo_opt.simulate.faults import Fault, FaultKind
from slo_opt.simulate.fleet_spec import FleetOptions
from slo_opt.simulate.play_fleet import play_fleet
from slo_opt.simulate.verdict import confirmed
from slo_opt.traces.generate import generate

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
SEEDS = st.integers(0, 10**9)
FLEETS = (
    [Role.BOTH] * 3,
    [Role.PREFILL, Role.DECODE],
    [Role.PREFILL, Role.PREFILL, Role.DECODE],
    [Role.PREFILL, Role.DECODE, Role.DECODE],
)


def played(seed: int, router: str, policy: str):
    rng = random.Random(seed)
    instance = drawn_instance(rng, max_requests=12)
    other = replace(instance.engine, name="half", kv_blocks=max(40, instance.engine.kv_blocks // 2))
    kinds = [(rng.choice([instance.engine, other]), role) for role in rng.choice(FLEETS)]
    options = FleetOptions(
        report_every_s=rng.choice([0.0, 0.1]),
        faults=(Fault(FaultKind.FAIL, 0, 0.3, 0.5),) if rng.random() < 0.3 else (),
    )
    run = confirmed(play_fleet(instance, kinds, router, policy, options=options))
    over = {*np.flatnonzero(run.finished).tolist(), *run.rejected, *run.failed}
    return run, set(range(len(instance.requests))) - over


@pytest.mark.parametrize("router", ROUTERS)
@settings(max_examples=25)
@given(SEEDS)
def test_every_router_serves_a_fleet(router, seed):
    _, left = played(seed, router, "vllm-fcfs")
    assert not left


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(SEEDS)
def test_every_policy_serves_in_a_fleet(policy, seed):
    _, left = played(seed, "least-loaded", policy)
    assert not left


@pytest.mark.parametrize("kinds", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_disaggregated_baselines_attain_what_is_easy(kinds):
    instance = generate("chatbot", rate=1.0, duration_s=20.0, engine="llama-3-8b-h100").to_instance()
    prefill, decode = kinds
    roles = [(instance.engine, Role.PREFILL)] * prefill + [(instance.engine, Role.DECODE)] * decode
    run = confirmed(play_fleet(instance, roles, "least-loaded", "sarathi"))
    assert run.on_time.mean() > 0.9
    assert run.num_transfers >= 0.9 * len(instance.requests)


def test_more_replicas_attain_more_of_an_overload():
    instance = generate("chatbot", rate=20.0, duration_s=15.0, engine="llama-3-8b-a100").to_instance()
    attained = [
        play_fleet(instance, [(instance.engine, Role.BOTH)] * count, "round-robin", "sarathi").on_time.sum()
        for count in (1, 2, 4)
    ]
    assert attained[0] < attained[1] < attained[2]


def test_unknown_names_are_refused():
    instance = drawn_instance(random.Random(1))
    kinds = [(instance.engine, Role.BOTH)]
    with pytest.raises(InvalidInputError, match="round-robbin"):
        play_fleet(instance, kinds, "round-robbin", "vllm-fcfs")
    with pytest.raises(InvalidInputError, match="vlm"):
        play_fleet(instance, kinds, "round-robin", "vlm")
    with pytest.raises(InvalidInputError, match="no setting 'speed'"):
        play_fleet(instance, kinds, "round-robin", "vllm-fcfs", router_setting={"speed": 1})


def test_the_example_of_the_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {"__name__": "example"})
    first, second = capsys.readouterr().out.splitlines()
    attained, hopped, lost = map(int, re.findall(r"\d+", first))
    assert attained > 100
    assert hopped + lost > 0
    seconds, count = map(int, re.findall(r"\d+", second))
    assert count >= 3
    assert seconds >= 3 * 25
