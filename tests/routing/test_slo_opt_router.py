"""slo-opt's own routing, worked by hand."""

from routing_views import best_effort, context, decode, decodes, prompt, view

from slo_opt.policies.interface import Job
from slo_opt.routing.interface import Placement, ReplicaView
from slo_opt.routing.slo_opt import SloOptRouter


def route(job: Job, *fleet: ReplicaView, now_s: float = 0.0, **setting: bool) -> Placement:
    return SloOptRouter(context(), **setting).route(job, fleet, now_s)


def busy(id: str, tokens: int = 300, due_s: float = 0.45) -> ReplicaView:
    """A replica whose plan has time for little more before its prompt is due."""
    return view(id, [prompt(f"{id}-p", tokens, due_s=due_s)])


def test_it_goes_where_it_costs_least_of_those_whose_plan_takes_it():
    crowd, queue = view("crowd", decodes(30)), busy("queue")
    assert route(prompt("j", 20, due_s=0.9), view("few", decodes(3)), crowd) == Placement("few")
    assert route(prompt("j", 300, due_s=0.5), queue, view("idle")) == Placement("idle")
    # By engine time the queue is cheaper, but 30 tokens more by 0.13 s do not fit beside its 100 by 0.12 s.
    short, job = busy("short", 100, 0.12), prompt("j", 30, due_s=0.13)
    assert route(job, short, view("some", decodes(20))) == Placement("some")
    assert route(prompt("j", 30, due_s=0.5), short, view("some", decodes(20))) == Placement("short")


def test_tiers_keep_apart_where_that_saves_time():
    tight, loose = view("tight", decodes(10)), view("loose", decodes(20, 0.1))
    assert route(prompt("j"), loose, tight) == Placement("tight")
    assert route(prompt("j", tpot_s=0.1), tight, loose) == Placement("loose")


def test_where_no_plan_takes_it_the_cheapest_gets_it_undecided():
    fleet = [busy("a", 280, 0.49), busy("b", 270, 0.49)]
    assert route(prompt("j", 300, due_s=0.5), *fleet) == Placement("b")


def test_what_is_hopeless_is_best_effort():
    fleet = [busy("a"), view("b", decodes(3))]
    assert route(prompt("j", 300, due_s=0.5), *fleet, now_s=0.2) == Placement("a", best_effort=True)
    missed = prompt("j", 20, due_s=0.5)
    missed.missed = True
    assert route(missed, *fleet) == Placement("a", best_effort=True)
    assert route(best_effort(decode("s")), *fleet) == Placement("a", best_effort=True)


def test_without_a_plan_the_predictions_decide():
    # First come first served it is late in the queue, which costs less; by deadline the plan lets it pass there.
    queue, crowd = view("queue", [prompt("p", 300, due_s=5.0)]), view("crowd", decodes(10))
    job = prompt("j", 100, due_s=0.2)
    assert route(job, queue, crowd) == Placement("queue")
    assert route(job, queue, crowd, plan=False) == Placement("crowd")
