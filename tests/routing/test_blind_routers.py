"""Routers that look at counts, worked by hand."""

from routing_views import ENGINE, context, decode, decodes, prompt, view

from slo_opt.routing.join_shortest_queue import JoinShortestQueueRouter
from slo_opt.routing.least_loaded import LeastLoadedRouter
from slo_opt.routing.lmetric import LMetricRouter
from slo_opt.routing.load import Load, load_of
from slo_opt.routing.per_version import PerVersion
from slo_opt.routing.round_robin import RoundRobinRouter


def test_load_counts_what_is_held_and_what_contexts_will_take():
    jobs = [decode("d", tokens=16), prompt("begun", 100, done=32), prompt("waits", 50)]
    # Held: 1 + 2 blocks. To come: 5 of the 7 of the one that has begun, 4 of the one that waits.
    assert load_of(view("a", jobs)) == Load(3, 68 + 50, 3 + 5 + 4, 12 / ENGINE.kv_blocks)
    assert load_of(view("a")) == Load(0, 0, 0, 0.0)


def test_what_is_derived_is_kept_until_the_version_changes():
    calls = []
    count = PerVersion(lambda one, word: calls.append(word) or len(calls))
    one = view("a")
    assert [count(one, "x"), count(one, "y"), count(view("b"), "z")] == [1, 1, 2]
    one.version += 1
    assert count(one, "y") == 3
    assert calls == ["x", "z", "y"]


def test_round_robin_takes_turns_and_remembers_them_when_some_are_missing():
    router = RoundRobinRouter(context())
    a, b, c = view("a"), view("b"), view("c")
    asked = [[a, b, c], [a, b, c], [a, b, c], [a, b, c], [a, c], [a, b, c], [a, b, c]]
    assert [router.route(prompt("j"), offered, 0.0).replica for offered in asked] == list("abcacba")
    assert router.route(prompt("j"), [a, b, c, view("new")], 0.0).replica == "new"


def test_least_loaded_weighs_requests_by_their_context():
    few_long, many_short = view("long", [decode("d", tokens=800)]), view("short", decodes(5))
    router = LeastLoadedRouter(context())
    assert router.route(prompt("j"), [few_long, many_short], 0.0).replica == "short"
    waits = view("waits", [prompt("p", 2000)])
    assert router.route(prompt("j"), [waits, few_long], 0.0).replica == "long"


def test_join_shortest_queue_counts_requests_then_those_that_wait():
    router = JoinShortestQueueRouter(context())
    assert router.route(prompt("j"), [view("a", decodes(5)), view("b", [decode("d", tokens=800)])], 0.0).replica == "b"
    one_waits = view("a", [decode("d"), prompt("p")])
    assert router.route(prompt("j"), [one_waits, view("b", decodes(2))], 0.0).replica == "b"


def test_lmetric_multiplies_prefill_tokens_and_batch_size():
    # 100 tokens more: (100 + 0) * 11 = 1,100; (100 + 300) * 2 = 800; of 20 tokens: 220 and 640.
    many, queue = view("many", decodes(10)), view("queue", [prompt("p", 300)])
    router = LMetricRouter(context())
    assert router.route(prompt("j", 100), [many, queue], 0.0).replica == "queue"
    assert router.route(prompt("j", 20), [many, queue], 0.0).replica == "many"
    assert router.route(prompt("j", 20), [many, queue, view("idle")], 0.0).replica == "idle"
