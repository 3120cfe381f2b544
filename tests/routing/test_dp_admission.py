"""A replica's plan as the router asks it, against every set there is."""

import random
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from routing_views import arriving, best_effort, decode, decodes, prompt, random_job, random_view, view

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.plan import admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.policies.interface import Job, Standing
from slo_opt.policies.lengths import NoLengths, OracleLengths
from slo_opt.routing.dp_admission import ReplicaAdmission
from slo_opt.routing.interface import ReplicaView, Role

NOW_S = 3.0


def plan_of(
    one: ReplicaView, prompts: list[Job], lengths: dict[str, int], memory: str, begins_s: float
) -> AdmissionProblem:
    """The plan that has to serve these prompts beside the decodes of a replica, stated from scratch."""
    alone = one.role is Role.PREFILL
    members = [job for job in (*one.running, *one.waiting) if job.standing is not Standing.BEST_EFFORT]
    decoding = tuple(
        Decoding(job.id, job.tpot_s, job.computed_tokens, max(1, lengths[job.id] - job.emitted_tokens))
        for job in members
        if job.decoding
    )
    candidates = tuple(
        Candidate(
            job.id,
            job.due_s,
            3600.0 if alone else job.tpot_s,
            job.left_tokens,
            job.computed_tokens,
            1 if alone else lengths[job.id],
            max(job.value, 1e-9),
        )
        for job in prompts
    )
    return admission_problem(AdmissionSnapshot(begins_s, decoding, candidates), one.engine, memory=memory)


def serves(problem: AdmissionProblem, jobs: list[Job]) -> bool:
    place = {name: k for k, name in enumerate(problem.ids)}
    return problem.check({place[job.id] for job in jobs}) is None


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["growth", "peak"]))
def test_it_accepts_exactly_whom_the_plan_can_serve_beside_the_best_it_has(seed, memory):
    rng = random.Random(seed)
    one = random_view(rng, "r", NOW_S, rng.choice([Role.BOTH, Role.BOTH, Role.PREFILL]))
    job = random_job(rng, "j", one.engine, NOW_S, decoding=False, inside=False)
    lengths = {other.id: rng.randint(1, 60) for other in (*one.running, *one.waiting, job)}
    admission = ReplicaAdmission(OracleLengths({id: [length] for id, length in lengths.items()}), memory)
    begins_s = NOW_S if one.idle else max(NOW_S, one.batch_ends_s)

    def hopeless(other: Job) -> bool:
        return begins_s + one.engine.least_prefill_s(other.left_tokens, other.computed_tokens) > other.due_s

    def planned(prompts: list[Job]) -> AdmissionProblem:
        return plan_of(one, prompts, lengths, memory, begins_s)

    here = [other for other in (*one.running, *one.waiting) if other.standing is not Standing.BEST_EFFORT]
    hopeful = [other for other in here if not other.decoding and not other.missed and not hopeless(other)]
    assume(len(hopeful) <= 8)
    everyone = planned(hopeful)
    sets = [list(some) for count in range(len(hopeful) + 1) for some in combinations(hopeful, count)]
    best = max(sum(other.value for other in some) for some in sets if serves(everyone, some))
    kept = admission.kept(one, NOW_S)
    assert set(kept) <= set(hopeful)
    assert sum(other.value for other in kept) == pytest.approx(best)

    accepted = admission.accepts(job, one, NOW_S)
    seats = len(here) + 1 <= one.engine.max_num_seqs
    possible = serves(planned([*kept, job]), [*kept, job])
    assert accepted == (seats and not hopeless(job) and possible)


def test_a_prompt_that_takes_the_time_of_another_is_declined():
    admission = ReplicaAdmission(NoLengths())
    # The one there needs 300 ms of the 0.45 s until its deadline; 300 tokens more by 0.5 s are too many, 50 are not.
    busy = view("a", [prompt("p", 300, due_s=0.45)])
    assert not admission.accepts(prompt("j", 300, due_s=0.5), busy, 0.0)
    assert admission.accepts(prompt("j", 50, due_s=0.5), busy, 0.0)
    assert admission.accepts(prompt("j", 300, due_s=0.9), busy, 0.0)


def test_who_is_late_already_takes_nobodys_place():
    admission = ReplicaAdmission(NoLengths())
    late = [prompt("late", 300, due_s=0.1), best_effort(prompt("spare", 3000, due_s=0.45))]
    missed = prompt("missed", 300, due_s=0.45)
    missed.missed = True
    assert admission.accepts(prompt("j", 300, due_s=0.5), view("a", [*late, missed]), 0.0)


def test_the_plan_begins_when_the_batch_under_way_ends():
    job, busy = prompt("j", 100, due_s=0.3), view("a", decodes(1), batch_ends_s=0.2)
    assert not ReplicaAdmission(NoLengths()).accepts(job, busy, 0.0)
    busy.batch_ends_s = 0.05
    assert ReplicaAdmission(NoLengths()).accepts(job, busy, 0.0)


def test_a_decode_is_judged_by_the_iteration_it_makes():
    admission = ReplicaAdmission(NoLengths())
    assert admission.accepts(arriving(decode("j")), view("a", decodes(39), role=Role.DECODE), 0.0)
    assert not admission.accepts(arriving(decode("j")), view("b", decodes(40), role=Role.DECODE), 0.0)
