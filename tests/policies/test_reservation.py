"""Reservation of KV blocks against a cache that is filled token by token."""

from dataclasses import replace

from hand_made import ENGINE, decode
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.policies.reservation import Reservation

JOBS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=6)


def fits_step_by_step(jobs: list[tuple[int, int]], block: int, capacity: int) -> bool:
    """Every job grows by a token a step, and leaves after its last one."""
    while jobs:
        jobs = [(tokens + 1, left - 1) for tokens, left in jobs]
        if sum(-(-tokens // block) for tokens, _ in jobs) > capacity:
            return False
        jobs = [(tokens, left) for tokens, left in jobs if left]
    return True


@given(JOBS, st.sampled_from([1, 4, 16]), st.integers(1, 60), st.booleans())
def test_it_fits_where_the_cache_never_overflows(sizes, block, capacity, late):
    engine = replace(ENGINE, block_size_tokens=block, kv_blocks=capacity)
    jobs = [decode(f"d{k}", 1.0, context=tokens - 1, engine=engine) for k, (tokens, _) in enumerate(sizes)]
    left = {job.id: remaining for job, (_, remaining) in zip(jobs, sizes, strict=True)}
    *members, last = jobs
    reserved = Reservation(engine, () if late else members, lambda job: left[job.id])
    for job in members if late else ():
        reserved.hold(job)
    assert reserved.fits(last) == fits_step_by_step(sizes, block, capacity)


def test_the_fullest_moment_is_a_departure():
    # 5 + 3 tokens and 1 + 9 tokens in blocks of one: 8 + 4 when the first departs, 10 when the second does.
    def fits(capacity: int) -> bool:
        engine = replace(ENGINE, block_size_tokens=1, kv_blocks=capacity)
        first, second = decode("a", 1.0, context=4, engine=engine), decode("b", 1.0, context=0, engine=engine)
        return Reservation(engine, [first], lambda job: {"a": 3, "b": 9}[job.id]).fits(second)

    assert not fits(11)
    assert fits(12)  # their peaks, 8 and 10, would not fit together
