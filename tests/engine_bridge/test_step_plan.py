"""Comparing a batch with its plan, and the queue that vLLM sees during a planned step. Needs no vLLM."""

from collections import deque
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.planned_queue import PlannedQueue, settle
from slo_opt.engine_bridge.step_plan import NO_DEVIATIONS, deviations

BATCH = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5))


@given(BATCH, BATCH, st.sets(st.sampled_from("abcdefgh")))
def test_each_difference_has_one_kind(planned, scheduled, ended_early):
    found = deviations(planned, scheduled, (), tuple(ended_early))
    kinds = [found.missing, found.fewer, found.more, found.unplanned, found.cached]
    named = [name for kind in kinds for name in kind]
    assert sorted(named) == sorted(
        name for name in planned.keys() | scheduled.keys() if planned.get(name) != scheduled.get(name)
    )
    assert set(found.cached) <= ended_early
    assert bool(found) == (len(named) > len(found.cached))
    assert sum(found.counts().values()) == len(named) - len(found.cached)


@given(BATCH)
def test_an_equal_batch_has_none_and_a_preemption_is_one(planned):
    assert deviations(planned, dict(planned), ()) is NO_DEVIATIONS
    assert not NO_DEVIATIONS
    assert deviations(planned, planned, ("x",)).counts() == {"preempted": 1}


@dataclass(eq=False)
class Named:
    request_id: str


class Queue(deque):
    """The part of vLLM's first-come queue that matters here."""

    prepend_request = deque.appendleft
    remove_request = deque.remove

    def remove_requests(self, requests):
        kept = [one for one in self if one not in requests]
        self.clear()
        self.extend(kept)


@given(st.integers(0, 30), st.data())
def test_skipped_requests_have_not_moved_and_started_ones_are_gone(size, data):
    requests = [Named(str(k)) for k in range(size)]
    true = Queue(requests)
    planned = data.draw(st.lists(st.sampled_from(requests), unique=True) if requests else st.just([]))
    shown = PlannedQueue(true, planned, set())
    started, skipped, seen = [], [], []
    while shown:
        assert shown.peek_request() is planned[len(seen)]
        one = shown.pop_request()
        seen.append(one)
        (started if data.draw(st.booleans()) else skipped).append(one)
    assert seen == planned
    assert len(shown) == size - len(planned)
    newcomer = Named("preempted meanwhile")
    shown.prepend_request(newcomer)
    shown.prepend_requests(skipped)
    settle([Queue(), true], started)
    assert list(true) == [newcomer, *(one for one in requests if one not in started)]
