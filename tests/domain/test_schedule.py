"""Schedules as arrays, as batches and as plain lists."""

import json

import numpy as np
import pytest
from evaluate_cases import batch
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.schedule import Batch, Schedule

ENTRIES = st.dictionaries(st.integers(0, 20), st.integers(1, 500), max_size=5)
BATCHES = st.lists(
    st.builds(
        lambda start_s, entries, preempted, replica, speculated: Batch(
            start_s,
            list(entries),
            list(entries.values()),
            [min(2, tokens) for tokens in entries.values()] if speculated else None,
            preempted,
            replica,
        ),
        st.floats(0, 1e4),
        ENTRIES,
        st.lists(st.integers(0, 20), max_size=2, unique=True),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=8,
)


@given(BATCHES, st.sets(st.integers(0, 20)))
def test_round_trips(batches, admitted):
    schedule = Schedule.from_batches(batches, admitted)
    ordered = sorted(batches, key=lambda b: b.start_s)
    assert len(schedule) == len(batches)
    speculated = any(b.emitted is not None for b in batches)
    for before, after in zip(ordered, schedule, strict=True):
        assert (after.start_s, after.replica) == (before.start_s, before.replica)
        assert (list(after.requests), list(after.tokens)) == (list(before.requests), list(before.tokens))
        assert list(after.preempted) == list(before.preempted)
        if not speculated:
            assert after.emitted is None
        else:
            assert list(after.emitted) == list(before.emitted or [1] * len(before.tokens))
    text = json.dumps(schedule.to_dict())
    again = Schedule.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.admitted == tuple(sorted(admitted))


def test_sorted_by_start():
    schedule = Schedule.from_batches([batch(5, {1: 2}), batch(0, {0: 3, 2: 1}, preempted=[4])])
    assert schedule.start_s.tolist() == [0, 5]
    assert schedule.offset.tolist() == [0, 2, 3]
    assert schedule.request.tolist() == [0, 2, 1]
    assert schedule.preempted == {0: (4,)}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("replica", [0], "replica has shape"),
        ("tokens", [3], "tokens has shape"),
        ("emitted", [1, 1, 1], "emitted has shape"),
        ("offset", [0, 1], "offset must ascend"),
        ("offset", [0, 1, 3], "offset must ascend"),
        ("offset", [0, 3, 2], "offset must ascend"),
        ("offset", [1, 1, 2], "offset must ascend"),
        ("preempted", {"2": [0]}, "preempted names a batch outside"),
    ],
)
def test_arrays_that_do_not_fit(field, value, says):
    data = Schedule.from_batches([batch(0, {0: 3}), batch(5, {1: 2})]).to_dict()
    data[field] = value
    with pytest.raises(InvalidInputError, match=says):
        Schedule.from_dict(data)


def test_empty():
    schedule = Schedule.from_batches([])
    assert len(schedule) == 0
    assert list(schedule) == []
    assert schedule.offset.dtype == np.int64
    assert len(Schedule.from_dict(schedule.to_dict())) == 0
