"""From jobs to the admission plan and back: the DP's set, the greedy one, draft lengths."""

import random
from dataclasses import replace
from itertools import combinations

import pytest
from hand_made import ENGINE, decode, ids, prompt, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.admission import AdmissionProblem
from slo_opt.domain.engines import engine_named
from slo_opt.domain.plan import admission_problem
from slo_opt.domain.snapshot import AdmissionSnapshot, Candidate, Decoding
from slo_opt.domain.speculation import best_draft_lengths
from slo_opt.policies.admission import Admission, draft_lengths, least_prefill_s
from slo_opt.policies.interface import Job
from slo_opt.policies.lengths import NoLengths, OracleLengths
from slo_opt.policies.pace import Pace

NOW_S = 3.0
SMALL = replace(ENGINE, kv_blocks=40)


class Moment:
    """Running decodes, prompts that are kept and prompts that are free to decline, and their output lengths."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.engine = replace(ENGINE, kv_blocks=rng.choice([60, 120, 1000]))
        self.lengths: dict[str, int] = {}
        self.decodes = [self._decode(rng, k) for k in range(rng.randint(0, 8))]
        self.kept = [self._prompt(rng, f"kept{k}") for k in range(rng.choice([0, 0, 1, 2]))]
        self.free = [self._prompt(rng, f"free{k}") for k in range(rng.randint(1, 7))]
        held = sum(job.kv_blocks for job in self.decodes)
        self.engine = replace(self.engine, kv_blocks=max(held, self.engine.kv_blocks))

    def _decode(self, rng: random.Random, k: int) -> Job:
        self.lengths[f"d{k}"] = rng.randint(2, 60)
        due_s = NOW_S + rng.uniform(0.0, 0.1)
        return decode(f"d{k}", due_s, context=rng.randint(1, 100), tpot_s=rng.choice([0.05, 0.1]))

    def _prompt(self, rng: random.Random, id: str) -> Job:
        self.lengths[id] = rng.randint(1, 200)
        done = rng.choice([0, 0, 10])
        tokens = done + rng.randint(1, 300)
        due_s = NOW_S + rng.choice([0.1, 0.4, rng.uniform(0.05, 1.5)])
        value, tpot_s = rng.choice([1.0, 1.0, 3.0, 0.5]), rng.choice([0.05, 0.1])
        return prompt(id, tokens, due_s, done=done, value=value, tpot_s=tpot_s)

    def accept(self, memory: str = "growth", *, greedy: bool = False) -> set[Job] | None:
        admission = Admission(OracleLengths({id: [length] for id, length in self.lengths.items()}), memory, greedy)
        moment = snapshot(self.decodes, now_s=NOW_S, engine=self.engine)
        return admission.accept(moment, self.decodes, self.kept, self.free)

    def problem(self, memory: str = "growth") -> AdmissionProblem:
        left = {job.id: max(1, self.lengths[job.id] - job.emitted_tokens) for job in (*self.decodes, *self.kept)}
        decoding = tuple(Decoding(job.id, job.tpot_s, job.computed_tokens, left[job.id]) for job in self.decodes)
        candidates = tuple(
            Candidate(
                job.id,
                job.due_s,
                job.tpot_s,
                job.left_tokens,
                job.computed_tokens,
                self.lengths[job.id],
                job.value,
                job in self.kept,
            )
            for job in (*self.kept, *self.free)
        )
        return admission_problem(AdmissionSnapshot(NOW_S, decoding, candidates), self.engine, memory=memory)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["growth", "peak"]))
def test_the_set_is_feasible_and_the_best_there_is(seed, memory):
    moment = Moment(seed)
    problem = moment.problem(memory)
    place = {name: k for k, name in enumerate(problem.ids)}
    kept = {place[job.id] for job in moment.kept}
    others = [place[job.id] for job in moment.free]
    feasible = [
        kept | set(some)
        for count in range(len(others) + 1)
        for some in combinations(others, count)
        if problem.check(kept | set(some)) is None
    ]
    best, greedy = moment.accept(memory), moment.accept(memory, greedy=True)
    if not feasible:
        assert best is greedy is None
        return
    assert best is not None
    assert best <= set(moment.free)
    chosen = kept | {place[job.id] for job in best}
    assert problem.check(chosen) is None
    assert problem.total_value(chosen) == max(map(problem.total_value, feasible))
    if problem.check(kept) is not None:
        return  # a debt of the decodes that only some free job repays: greedy gives up
    assert greedy is not None
    taken = kept | {place[job.id] for job in greedy}
    assert problem.check(taken) is None
    assert problem.total_value(taken) <= problem.total_value(chosen)
    assert all(problem.check(taken | {k}) is not None for k in others if k not in taken)


def test_nobody_is_accepted_where_the_kept_are_too_many():
    late = prompt("late", 400, due_s=0.1)
    admission = Admission(NoLengths())
    assert admission.accept(snapshot([]), [], [late], [prompt("a", 10)]) is None
    assert ids(admission.accept(snapshot([]), [], [], [late, prompt("a", 10)])) == ["a"]


def test_a_job_without_value_is_accepted_if_it_costs_nobody():
    worthless, other = prompt("w", 90, due_s=0.1, value=0.0), prompt("a", 90, due_s=0.1)
    admission = Admission(NoLengths())
    assert ids(admission.accept(snapshot([]), [], [], [worthless])) == ["w"]
    assert ids(admission.accept(snapshot([]), [], [], [worthless, other])) == ["a"]


def test_decodes_that_run_ahead_depart_sooner():
    # 30 decodes of 50 ms and 30 tokens: at the pace of their SLO they stay for 1.5 s and leave 20 % of the engine's
    # time until then, 0.2 s of the first one; at one token in 10 ms they are gone after 0.3 s.
    decodes = [decode(f"d{k}", 0.05) for k in range(30)]
    oracle = OracleLengths({**{job.id: [31] for job in decodes}, "a": [1]})
    job = prompt("a", 400, due_s=1.0)
    pace = Pace()
    pace.expect(30, 30)
    pace.learn(0.01)
    admission = Admission(oracle)
    moment = snapshot(decodes)
    assert admission.accept(moment, decodes, [], [job]) == set()
    assert admission.accept(moment, decodes, [], [job], pace=pace) == {job}


def test_who_leaves_with_the_first_token_takes_nothing_after_it():
    # 450 tokens in half a second. If `a` decodes from 0.2 s on, batches of 50 ms leave 78 % of the time after that for
    # `b`, 0.43 s in all; full ones leave nearly all of it. Nobody keeps more KV blocks than its prompt and a token.
    jobs, now = [prompt("a", 150, due_s=0.2), prompt("b", 300, due_s=0.5)], snapshot([], engine=SMALL)
    here, elsewhere = (OracleLengths({"a": [length], "b": [length]}) for length in (10, 1000))
    assert len(Admission(here).accept(now, [], [], jobs) or ()) == 1
    assert Admission(here, decodes=False).accept(now, [], [], jobs) == set(jobs)
    assert Admission(elsewhere, decodes=False).accept(now, [], [], jobs) == set(jobs)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["growth", "peak"]))
def test_without_decodes_to_follow_no_less_is_accepted(seed, memory):
    moment = Moment(seed)
    moment.decodes = []
    oracle = OracleLengths({id: [length] for id, length in moment.lengths.items()})
    now = snapshot([], now_s=NOW_S, engine=moment.engine)
    stay = Admission(oracle, memory).accept(now, [], moment.kept, moment.free)
    leave = Admission(oracle, memory, decodes=False).accept(now, [], moment.kept, moment.free)
    if stay is not None:
        assert leave is not None
        assert sum(job.value for job in leave) >= sum(job.value for job in stay)


def test_unknown_lengths_are_256_tokens():
    admission = Admission(NoLengths())
    assert admission.remaining_tokens(prompt("a", 10)) == 256
    assert admission.remaining_tokens(replace(decode("d", 1.0), emitted_tokens=200)) == 56
    assert admission.remaining_tokens(replace(decode("d", 1.0), emitted_tokens=900)) == 1


def test_least_prefill_is_one_batch_or_the_bound_on_several():
    engine = replace(ENGINE, max_num_batched_tokens=100, prefill_pair_s=1e-6)
    assert least_prefill_s(prompt("a", 80, done=20), engine) == pytest.approx(0.070 + 1e-6 * sum(range(21, 81)))
    assert least_prefill_s(prompt("a", 250), engine) == engine.least_prefill_s(250, 0)


def test_draft_lengths_are_the_best_for_the_tiers_that_run():
    engine = engine_named("opt-6.7b-a100-draft")
    counts = {0.05: 5, 0.1: 20}
    decodes = [
        decode(f"d{tpot_s}-{k}", 1.0, tpot_s=tpot_s, engine=engine)
        for tpot_s, count in counts.items()
        for k in range(count)
    ]
    for acceptance in (0.3, 0.7, 0.9):
        moment = snapshot(decodes, engine=engine, acceptance=acceptance)
        best = best_draft_lengths(engine, [0.05, 0.1], [5, 20], acceptance, 8)
        assert draft_lengths(moment, decodes) == dict(zip((0.05, 0.1), best, strict=True))
    assert best[0] > best[1] >= 1  # the tighter tier drafts more
    assert draft_lengths(snapshot(decodes, engine=engine), decodes) == {}
    assert draft_lengths(snapshot([], engine=engine, acceptance=0.7), []) == {}
