"""What holds for every router that can be named, on whatever fleet."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_views import CLASSES, best_effort, contents, decode, random_engine, random_fleet, random_job, view

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.interface import Job, RoundEnd, Standing
from slo_opt.policies.lengths import NoLengths, QuantileLengths
from slo_opt.routing.interface import Placement, ReplicaView, Role, RoutingPolicy
from slo_opt.routing.registry import ROUTERS, RoutingContext, full_router_setting, make_router, router_entry

NAMES = sorted(ROUTERS)


def fresh(name: str, setting: dict[str, object] | None = None, lengths: str = "none") -> RoutingPolicy:
    predictor = NoLengths() if lengths == "none" else QuantileLengths(0.7, default_tokens=4)
    return make_router(name, RoutingContext(CLASSES, predictor), setting)


def drawn_calls(rng: random.Random) -> list[tuple[Job, list[ReplicaView], float]]:
    """Calls of one fleet: all of it offered, or all but some; it changes between them or not."""
    now_s = rng.choice([0.0, 100.0])
    role, fleet = random_fleet(rng, now_s)
    calls = []
    for k in range(rng.randint(1, 5)):
        decoding = role is Role.DECODE
        job = random_job(rng, f"new{k}", random_engine(rng), now_s, decoding=decoding, inside=False)
        calls.append((job, rng.sample(fleet, rng.randint(1, len(fleet))), now_s))
    return calls


def check(job: Job, replicas: list[ReplicaView], now_s: float, placement: Placement) -> None:
    if placement.replica is None:
        assert now_s < placement.wake_s < math.inf
        assert job.standing is not Standing.BEST_EFFORT
    else:
        assert placement.replica in {one.id for one in replicas}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_answers_are_legal_repeatable_and_leave_the_views_alone(name: str, seed: int):
    rng = random.Random(seed)
    lengths = rng.choice(["none", "quantile"])
    one, two = fresh(name, lengths=lengths), fresh(name, lengths=lengths)
    for job, replicas, now_s in drawn_calls(rng):
        before = contents(replicas)
        placement = one.route(job, replicas, now_s)
        check(job, replicas, now_s, placement)
        assert placement == two.route(job, replicas, now_s)
        assert contents(replicas) == before
        end = RoundEnd(job.id, "tight", rng.randint(1, 50), missed=False)
        one.observe(end)
        two.observe(end)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_who_is_held_is_placed_in_the_end(name: str, seed: int):
    rng = random.Random(seed)
    router = fresh(name)
    for job, replicas, now_s in drawn_calls(rng):
        placement = router.route(job, replicas, now_s)
        for _ in range(200):  # deadlines are at most 2 s away, and a retry at least 20 ms or the last
            if placement.replica is not None:
                break
            now_s = placement.wake_s
            placement = router.route(job, replicas, now_s)
            check(job, replicas, now_s, placement)
        assert placement.replica is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_fleet_of_one_serves_all(name: str):
    router = fresh(name)
    only = [view("r")]
    assert router.route(best_effort(decode("b")), only, 0.0).replica == "r"
    for role in Role:
        one = [view(f"r-{role}", role=role)]
        job = random_job(random.Random(1), "j", one[0].engine, 0.0, decoding=role is Role.DECODE, inside=False)
        job.missed, job.due_s, job.tpot_s, job.standing, job.value = False, 5.0, 0.1, Standing.UNDECIDED, 1.0
        assert router.route(job, one, 0.0) == Placement(f"r-{role}")


@pytest.mark.parametrize("name", NAMES)
def test_every_static_setting_works(name: str):
    entry = ROUTERS[name]
    assert 1 <= len(entry.settings) <= 6
    for k, setting in enumerate(entry.settings):
        router = fresh(name, dict(setting))
        for job, replicas, now_s in drawn_calls(random.Random(k)):
            check(job, replicas, now_s, router.route(job, replicas, now_s))
    assert set(entry.settings[0]) <= set(full_router_setting(name))


@pytest.mark.parametrize("name", NAMES)
def test_its_name_is_the_one_it_is_asked_for_by(name: str):
    assert fresh(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_does_not_exist_is_refused(name: str):
    with pytest.raises(InvalidInputError, match="no_such_setting"):
        fresh(name, {"no_such_setting": 1})


def test_an_unknown_router_is_refused_with_the_nearest_name():
    with pytest.raises(InvalidInputError, match="Did you mean 'polyserve'"):
        router_entry("polyserv")


def test_a_router_of_ones_own_is_loaded_by_its_path():
    router = make_router("slo_opt.routing.round_robin:RoundRobinRouter", RoutingContext(CLASSES, NoLengths()))
    assert router.route(decode("d"), [view("a"), view("b")], 0.0) == Placement("a")
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        make_router("slo_opt.routing.round_robin:NoSuch", RoutingContext(CLASSES, NoLengths()))
