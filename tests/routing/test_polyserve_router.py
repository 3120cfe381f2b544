"""PolyServe's ladder and each of its mechanisms by hand: 40 decodes fill the tier of 50 ms, 90 that of 100 ms."""

import pytest
from routing_views import best_effort, context, decode, decodes, prompt, view

from slo_opt.policies.interface import Job
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.polyserve import PolyServeRouter


def route(job: Job, *fleet: ReplicaView, now_s: float = 0.0, **switches: bool) -> Placement:
    return PolyServeRouter(context(), **switches).route(job, fleet, now_s)


def few(id: str, tpot_s: float = 0.05, count: int = 5) -> ReplicaView:
    return view(id, decodes(count, tpot_s))


def full(id: str, tpot_s: float = 0.05) -> ReplicaView:
    return view(id, decodes(40 if tpot_s == 0.05 else 90, tpot_s))


TIGHT, LOOSE = prompt("tight", 5), prompt("loose", 5, tpot_s=0.1)


def test_in_its_own_tier_it_goes_to_the_most_loaded_that_attains_it():
    fleet = [few("a", count=10), few("b", count=20), full("c")]
    assert route(TIGHT, *fleet) == Placement("b")
    assert route(TIGHT, *fleet, gradient=False) == Placement("a")


def test_a_looser_request_is_promoted_only_when_its_own_tier_is_full():
    assert route(LOOSE, few("tight"), few("own", 0.1), view("idle")) == Placement("own")
    assert route(LOOSE, few("tight"), full("own", 0.1), view("idle")) == Placement("tight")
    assert route(LOOSE, few("tight"), full("own", 0.1), view("idle"), promotion=False) == Placement("idle")


def test_of_tighter_tiers_the_nearest_is_tried_first():
    third = prompt("third", 5, tpot_s=0.2)
    assert route(third, few("50"), few("100", 0.1)) == Placement("100")
    assert route(third, few("50"), full("100", 0.1)) == Placement("50")


def test_the_tpot_of_the_host_decides_a_promotion():
    assert route(LOOSE, few("tight", count=39), view("idle")) == Placement("tight")
    assert route(LOOSE, full("tight"), view("idle")) == Placement("idle")


def test_a_tight_request_claims_an_idle_replica_rather_than_a_looser_tiers():
    assert route(TIGHT, few("loose", 0.1), view("idle")) == Placement("idle")
    assert route(TIGHT, few("loose", 0.1)).replica is None
    assert route(TIGHT, few("loose", 0.1), view("idle"), tiers=False) == Placement("loose")
    assert route(TIGHT, few("loose", 0.1), tiers=False) == Placement("loose")


def test_a_replica_belongs_to_its_tightest_request_that_can_still_be_attained():
    mixed = view("mixed", [*decodes(3), *decodes(30, 0.1)])
    other = few("other", 0.1)
    assert route(LOOSE, mixed, other) == Placement("other")
    for job in mixed.running[:3]:
        job.missed = True
    assert route(LOOSE, mixed, other) == Placement("mixed")
    spare = view("spare", [best_effort(job) for job in decodes(3)])
    assert route(TIGHT, few("loose", 0.1), spare) == Placement("spare")


def test_without_claims_replicas_are_dealt_to_the_tiers_in_turn():
    # The first to the tier of 50 ms, the second to that of 100 ms, the third again to that of 50 ms.
    router = PolyServeRouter(context(), claim=False)
    a, b, c = view("a"), view("b"), view("c")
    assert router.route(LOOSE, [a, b, c], 0.0) == Placement("b")
    assert router.route(TIGHT, [c, b, a], 0.0) == Placement("c")
    assert router.route(TIGHT, [b], 0.0).replica is None  # idle, but of the other tier
    assert router.route(LOOSE, [a], 0.0) == Placement("a")  # promoted
    assert PolyServeRouter(context(), claim=False, promotion=False).route(LOOSE, [a], 0.0).replica is None


def test_what_nobody_attains_waits_until_it_is_hopeless():
    # 20 tokens take 30 ms alone, so it must begin by 0.97 s.
    job, fleet = prompt("j", 20, due_s=1.0), [full("a"), full("b")]
    assert route(job, *fleet) == Placement(None, wake_s=pytest.approx(0.02))
    assert route(job, *fleet, now_s=0.96) == Placement(None, wake_s=pytest.approx(0.97))
    assert route(job, *fleet, now_s=0.97).best_effort
    assert route(job, full("a"), few("b", 0.1, count=3), now_s=0.98) == Placement("b", best_effort=True)
    assert route(job, *fleet, pending=False) == Placement("a", best_effort=True)


def test_predictions_may_leave_out_the_batch_under_way():
    busy = view("busy", decodes(5), batch_ends_s=0.5)
    job = prompt("j", 5, due_s=0.4)
    assert route(job, busy).replica is None
    assert route(job, busy, wait_aware=False) == Placement("busy")


def test_predictions_may_believe_that_the_chunk_of_the_present_lasts():
    # 0.8 s at 20 tokens a batch, 1.5 s as chunks shrink.
    crowd = view("crowd", [*decodes(20), *(prompt(f"p{k}", 20) for k in range(15))])
    job = prompt("j", 20, due_s=1.0)
    assert route(job, crowd).replica is None
    assert route(job, crowd, continuous=False) == Placement("crowd")


def test_best_effort_goes_where_the_fewest_are():
    assert route(best_effort(decode("s")), few("a"), few("b", count=2)) == Placement("b", best_effort=True)
