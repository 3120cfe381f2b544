"""What holds for every policy that can be named, on whatever instance."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import Case, random_case

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.registry import POLICIES, make_policy

NAMES = sorted(POLICIES)


def check(case: Case, name: str, setting: dict[str, object] | None = None) -> None:
    run = case.run(name, setting)
    assert run.evaluation.violations == ()
    gone = run.evaluation.finished.copy()
    gone[list(run.rejected)] = True
    assert gone.all(), f"left behind: {np.flatnonzero(~gone)}"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_every_request_is_served_or_rejected_by_legal_batches(name: str, seed: int):
    check(random_case(random.Random(seed)), name)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_schedule(name: str):
    for seed in range(5):
        case = random_case(random.Random(seed))
        one, two = case.run(name).schedule, case.run(name).schedule
        assert list(one) == list(two)
        assert one.admitted == two.admitted


@pytest.mark.parametrize("name", NAMES)
def test_every_static_setting_works(name: str):
    entry = POLICIES[name]
    assert 1 <= len(entry.settings) <= 6
    for k, setting in enumerate(entry.settings):
        check(random_case(random.Random(k)), name, dict(setting))


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_does_not_exist_is_refused(name: str):
    case = random_case(random.Random(0))
    with pytest.raises(InvalidInputError, match="no_such_setting"):
        case.run(name, {"no_such_setting": 1})


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(InvalidInputError, match="Did you mean 'sarathi'"):
        make_policy("sarati", None)  # type: ignore[arg-type]
