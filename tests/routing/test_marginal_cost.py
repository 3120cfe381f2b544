"""What a request costs: dearer where more is taken, and where it makes the batches of others shorter."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from routing_views import arriving, decode, decodes, prompt, random_job, random_view, view

from slo_opt.policies.interface import Job
from slo_opt.policies.lengths import NoLengths
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.marginal_cost import MarginalCost


def cost(job: Job, one: ReplicaView) -> float:
    return MarginalCost(Forecast(NoLengths()), 6.0, 1.0).of(job, one)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_nothing_is_free_and_more_costs_more(seed):
    rng = random.Random(seed)
    role = rng.choice(list(Role))
    one = random_view(rng, "r", 0.0, role)
    job = random_job(rng, "j", one.engine, 0.0, decoding=role is Role.DECODE, inside=False)
    price = cost(job, one)
    assert 0 < price < math.inf
    job.known_tokens += 100  # of a prompt, or of the context of a decode
    job.computed_tokens += 100 * job.decoding
    assert cost(job, one) > price


def test_the_same_request_is_dearer_where_more_is_there():
    job = prompt("j", tpot_s=0.1)
    prices = [cost(job, view(f"r{count}", decodes(count, 0.1))) for count in (0, 10, 40, 80)]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1] / 2
    assert cost(job, view("a", [prompt("p", 300)])) > cost(job, view("b", [prompt("p", 30)]))


def test_tiers_keep_apart_without_a_partition():
    # 20 decodes of 100 ms take 22 % of what batches of 100 ms leave; beside one of 50 ms, 25 %.
    tight, loose = view("tight", decodes(10)), view("loose", decodes(20, 0.1))
    for job, own, other in ((prompt("j"), tight, loose), (prompt("j", tpot_s=0.1), loose, tight)):
        assert cost(job, own) < cost(job, other)


def test_a_replica_that_only_prefills_knows_no_tiers():
    for tpot_s in (0.01, 10.0):
        job = prompt("j", 100, tpot_s=tpot_s)
        assert cost(job, view("a", role=Role.PREFILL)) == cost(prompt("j", 100), view("a", role=Role.PREFILL))


def test_a_decode_costs_no_prefill():
    # Engine time: a token and its step; the prompt of 160 tokens would add 0.16 s.
    assert cost(arriving(decode("j", tokens=160)), view("a")) < cost(prompt("j", 161), view("a"))
