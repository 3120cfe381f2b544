"""Up, down, and when to look next."""

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.health import Health


def test_down_until_it_answers():
    health = Health(1.0, 3)
    assert not health.up
    assert health.cause
    assert health.answered(5.0)
    assert health.up
    assert health.next_look_s == 6.0
    assert not health.answered(6.0)


def test_a_refused_look_is_believed_and_a_late_one_only_when_repeated():
    health = Health(1.0, 3)
    health.answered(0.0)
    assert not health.missed(1.0, 3.0, "late", sure=False)
    assert not health.missed(3.0, 5.0, "late", sure=False)
    assert health.up
    assert health.missed(5.0, 7.0, "late", sure=False)
    assert (health.up, health.failing_since_s, health.cause) == (False, 1.0, "late")
    health.answered(8.0)
    assert health.failing_since_s is None
    assert health.missed(9.0, 9.0, "refused", sure=True)


def test_a_served_request_is_an_answer_too():
    health = Health(1.0, 2)
    health.answered(0.0)
    health.missed(1.0, 3.0, "late", sure=False)
    health.served()
    assert not health.missed(3.0, 5.0, "late", sure=False)
    assert (health.up, health.failing_since_s) == (True, 3.0)


def test_a_request_that_fails_is_believed_at_once():
    health = Health(1.0, 3)
    assert not health.failed(0.0, "lost")
    health.answered(0.0)
    assert health.failed(1.0, "lost")
    assert not health.failed(2.0, "lost")
    assert health.down_since_s == 1.0
    assert 1.0 < health.next_look_s < 2.0


def test_a_replica_that_answers_looks_and_fails_requests_comes_back_ever_more_slowly():
    health = Health(1.0, 3)
    waits = []
    for moment in range(8):
        health.answered(moment)
        health.failed(moment, "lost")
        waits.append(health.next_look_s - moment)
    assert waits == sorted(waits)
    assert waits[0] < 0.5
    assert waits[-1] == 5.0
    health.answered(9.0)
    health.served()
    health.failed(9.0, "lost")
    assert health.next_look_s - 9.0 == waits[0]


def test_errors_bring_a_look_at_once_but_not_a_storm_of_them():
    health = Health(10.0, 3)
    health.answered(0.0)
    health.doubted(5.0)
    assert health.next_look_s == 5.0
    health.answered(5.0)
    for moment in (5.0, 5.01, 5.02):
        health.doubted(moment)
        assert 5.2 < health.next_look_s < 5.5


EVENTS = st.sampled_from(["answered", "late", "refused", "failed", "doubted", "served"])


@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 10.0)), max_size=60))
def test_whatever_happens_it_is_looked_at_again_soon(events: list[tuple[str, float]]):
    health, now_s = Health(1.0, 3), 0.0
    for event, wait_s in events:
        now_s += wait_s
        was_up = health.up
        match event:
            case "answered":
                assert health.answered(now_s) is not was_up
                assert health.up
            case "late" | "refused":
                went_down = health.missed(now_s, now_s, "x", sure=event == "refused")
                assert went_down is (was_up and not health.up)
            case "failed":
                assert health.failed(now_s, "x") is was_up
                assert not health.up
            case "doubted":
                health.doubted(now_s)
                assert health.up is was_up
            case "served":
                health.served()
        assert health.next_look_s <= now_s + 5.0
        assert health.up is not bool(health.cause)
