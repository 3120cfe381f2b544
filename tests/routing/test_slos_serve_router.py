"""SLOs-Serve's routing, worked by hand."""

from routing_views import best_effort, context, decode, prompt, view

from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.slos_serve import SlosServeRouter


def full(id: str) -> ReplicaView:
    """A replica whose plan has no time for 300 tokens by 0.5 s."""
    return view(id, [prompt(f"{id}-p", 300, due_s=0.45)])


def test_first_choices_take_turns():
    router = SlosServeRouter(context())
    fleet = [view("a"), view("b"), view("c")]
    assert [router.route(prompt("j"), fleet, 0.0).replica for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_a_replica_that_declines_hands_on_to_the_next():
    router = SlosServeRouter(context())
    fleet = [full("a"), full("b"), view("c")]
    job = prompt("j", 300, due_s=0.5)
    assert [router.route(job, fleet, 0.0) for _ in range(2)] == [Placement("c")] * 2
    assert router.route(prompt("small", 20), fleet, 0.0) == Placement("c")  # its turn


def test_the_last_one_keeps_it_as_best_effort():
    router = SlosServeRouter(context())
    fleet = [full("a"), full("b")]
    job = prompt("j", 300, due_s=0.5)
    assert router.route(job, fleet, 0.0) == Placement("b", best_effort=True)
    assert router.route(job, fleet, 0.0) == Placement("a", best_effort=True)


def test_hops_limit_how_many_are_asked():
    fleet = [full("a"), full("b"), view("c")]
    job = prompt("j", 300, due_s=0.5)
    assert SlosServeRouter(context(), hops=1).route(job, fleet, 0.0) == Placement("b", best_effort=True)
    assert SlosServeRouter(context(), hops=2).route(job, fleet, 0.0) == Placement("c")


def test_best_effort_is_not_planned():
    router = SlosServeRouter(context())
    assert router.route(best_effort(decode("s")), [full("a"), view("b")], 0.0) == Placement("a", best_effort=True)
