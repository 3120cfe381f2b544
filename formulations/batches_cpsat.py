"""Level 1, exact on batches, as a CP-SAT model: slots of variable length on one replica.

See ``formulations/README.md``, section "Level 1: exact on batches", for the statement and the proofs.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ortools.sat.python import cp_model

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.windows import stage_windows
from slo_opt.formulations.batches_rounds import CLOCK, RELEASE, Round, rounds_of

_PS = 10**12
_VALUE_SCALE = 10**6
_MOST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Grid:
    """Rounding of real times to a grid of `tick_ps` picoseconds.

    Parameters
    ----------
    outer : bool
        Outer: the floors of the times of every legal real schedule satisfy the model, so its dual bound is one on the
        real problem. Inner: every solution of the model is a legal real schedule.
    origin_s : float
        Time of tick 0.
    tick_ps : int
        Length of a tick.
    """

    outer: bool
    origin_s: float = 0.0
    tick_ps: int = 10**6

    def _ticks(self, seconds: float) -> Fraction:
        return Fraction(seconds) * _PS / self.tick_ps

    def release(self, seconds: float) -> int:
        """Earliest tick of a start at a fixed time."""
        return self.min_lag(seconds - self.origin_s)

    def deadline(self, seconds: float) -> int:
        """Latest tick of an end at a fixed time; outer forgives what `evaluate` forgives."""
        return math.floor(self._ticks(seconds - self.origin_s + (2 * TIME_TOLERANCE_S if self.outer else 0.0)))

    def min_lag(self, seconds: float) -> int:
        """Least ticks from an end to a start."""
        return math.floor(self._ticks(seconds)) if self.outer else math.ceil(self._ticks(seconds))

    def max_lag(self, seconds: float) -> int:
        """Most ticks between two ends."""
        return (
            math.ceil(self._ticks(seconds + 2 * TIME_TOLERANCE_S)) if self.outer else math.floor(self._ticks(seconds))
        )

    def cost_ps(self, seconds: float) -> int:
        """A coefficient of the batch time, picoseconds."""
        return math.floor(Fraction(seconds) * _PS) if self.outer else math.ceil(Fraction(seconds) * _PS)

    @property
    def slack_ps(self) -> int:
        """Picoseconds by which a slot may be shorter than its batch time: outer rounds it down, inner up."""
        return self.tick_ps - 1 if self.outer else 0


def sufficient_slots(instance: Instance, rounds: tuple[Round, ...]) -> int:
    """Slots that are enough for some optimal schedule.

    Two proofs, the smaller number counts. By time: every batch of a schedule without useless batches lies between the
    first release and the last deadline and takes at least the time of one token. By merging: a batch that completes
    no output token can be merged into the next one, keeping that one's end, unless a round is released in between
    or the token limit forbids it. Where the limit on requests a batch could forbid it, only the first proof counts.
    """
    if not rounds:
        return 0
    engine = instance.engine
    tokens = sum(r.prompt_tokens + r.output_tokens - 1 for r in rounds)
    forced = 2 * tokens // engine.max_num_batched_tokens if tokens > engine.max_num_batched_tokens else 0
    by_merging = sum(r.output_tokens for r in rounds) + len(rounds) - 1 + forced
    windows = [stage_windows(instance, instance.requests[i])[-1] for i in {r.request for r in rounds}]
    span_s = max(w.last_due_s for w in windows) - min(r.arrival_s + r.pause_s for r in rounds if r.first)
    least_s = engine.batch_time_s(1, num_requests=1)
    by_time = math.floor((span_s + 1e-5) / least_s)
    return max(0, min(by_merging, by_time) if len(rounds) <= engine.max_num_seqs else by_time)


class BatchesModel:
    """The model and its variables.

    Parameters
    ----------
    instance : Instance
        One replica, something to attain.
    grid : Grid
        Rounding of times.
    slots : int
        Number of batches.
    exact_pairs : bool
        Whether prefill pairs are exact, by products, or relaxed: each prompt's pairs add up, but may move between its
        chunks. The relaxed model is far easier, and its answer nearly always holds at exact times.

    Attributes
    ----------
    model : ortools.sat.python.cp_model.CpModel
        Maximise the scaled value.
    accepted : dict of int to variable
        Whether a request is attained, by index.
    chunk : list of list of variable
        Prompt tokens of a round in a slot.
    token : list of list of list of variable
        Whether an output token of a round comes out of a slot.
    start, end : list of variable
        Times of the slots, in ticks.
    scale : int
        Objective units per unit of value.
    """

    def __init__(self, instance: Instance, grid: Grid, slots: int, *, exact_pairs: bool) -> None:
        self.instance, self.grid, self.slots, self.exact_pairs = instance, grid, slots, exact_pairs
        self.rounds = rounds_of(instance)
        self.model = cp_model.CpModel()
        requests = sorted({r.request for r in self.rounds})
        self.accepted = {i: self.model.new_bool_var(f"x{i}") for i in requests}
        self.windows = {i: stage_windows(instance, instance.requests[i]) for i in requests}
        self.first_tick = min(grid.release(r.arrival_s + r.pause_s) for r in self.rounds if r.first)
        last_s = max(window[-1].last_due_s for window in self.windows.values())
        self.last_tick = max(grid.deadline(last_s) + len(self.rounds), self.first_tick)
        if last_s - grid.origin_s > _MOST_S:
            raise InvalidInputError(
                f"{instance.name}: {(last_s - grid.origin_s) / 3600:.1f} hours from the first arrival to the last "
                "deadline; the exact model takes a day at most: cut the trace into windows"
            )
        # Deadline of the first token of a round, where the decode clock may start later than that.
        self.clock_due: dict[int, cp_model.LinearExprT] = {}
        self._slots()
        self._rounds()
        self._batch_times()
        self._kv()
        self._limits()
        self._capacity()
        self._objective()

    def _time(self, name: str) -> cp_model.IntVar:
        return self.model.new_int_var(self.first_tick, self.last_tick, name)

    def _slots(self) -> None:
        model, slots = self.model, range(self.slots)
        self.active = [model.new_bool_var(f"a{b}") for b in slots]
        self.start = [self._time(f"s{b}") for b in slots]
        self.end = [self._time(f"e{b}") for b in slots]
        for b in slots:
            model.add(self.end[b] >= self.start[b])
            if b:
                model.add(self.start[b] >= self.end[b - 1])
                model.add_implication(self.active[b], self.active[b - 1])
                # An unused slot takes no time and no choice.
                model.add(self.end[b] == self.end[b - 1]).only_enforce_if(~self.active[b])

    def _rounds(self) -> None:
        """Chunks, tokens and their order."""
        model, slots = self.model, range(self.slots)
        # token[r][k][b]: output token k + 1 of round r comes out of slot b.
        self.token: list[list[list[cp_model.IntVar]]] = []
        self.chunk: list[list[cp_model.IntVar]] = []
        self.works: list[list[cp_model.IntVar]] = []  # whether the round has a chunk in slot b
        for r, rnd in enumerate(self.rounds):
            x = self.accepted[rnd.request]
            chunk = [model.new_int_var(0, rnd.prompt_tokens, f"u{r},{b}") for b in slots]
            works = [model.new_bool_var(f"w{r},{b}") for b in slots]
            token = [[model.new_bool_var(f"t{r},{k},{b}") for b in slots] for k in range(rnd.output_tokens)]
            model.add(sum(chunk) == rnd.prompt_tokens * x)
            for row in token:
                model.add(sum(row) == x)
            for b in slots:
                model.add(chunk[b] <= rnd.prompt_tokens * works[b])
                model.add(chunk[b] >= works[b])
                model.add_implication(token[0][b], works[b])
                # No chunk after the first token: the prompt is complete in that slot.
                model.add(works[b] <= sum(token[0][b:]))
                model.add_implication(works[b], self.active[b])
                for before, after in pairwise(token):
                    model.add(sum(after[: b + 1]) <= sum(before[:b]))
                    model.add_implication(after[b], self.active[b])
            self.chunk.append(chunk)
            self.works.append(works)
            self.token.append(token)
        for b in slots:
            entries = [self.works[r][b] for r in range(len(self.rounds))]
            entries += [row[b] for token in self.token for row in token[1:]]
            model.add(sum(entries) >= self.active[b])
            if len(self.rounds) > self.instance.engine.max_num_seqs:
                model.add(sum(entries) <= self.instance.engine.max_num_seqs)

    def _batch_times(self) -> None:
        model, grid, engine = self.model, self.grid, self.instance.engine
        context_ps, pair_ps = grid.cost_ps(engine.decode_context_s), grid.cost_ps(engine.prefill_pair_s / 2)
        request_ps, host_ps = grid.cost_ps(engine.request_s), grid.cost_ps(engine.host_s)
        pairs = (self._pairs_exact() if self.exact_pairs else self._pairs_envelope()) if pair_ps else None
        for b in range(self.slots):
            decodes = [
                (row[b], rnd.cached_tokens + rnd.prompt_tokens + k)
                for rnd, token in zip(self.rounds, self.token, strict=True)
                for k, row in enumerate(token[1:])
            ]
            steps = [step for step, _ in decodes]
            tokens = sum(chunk[b] for chunk in self.chunk) + sum(steps)
            model.add(tokens <= engine.max_num_batched_tokens)
            work: cp_model.LinearExprT = host_ps * self.active[b]
            if context_ps:
                work += sum(context_ps * context * step for step, context in decodes)
            if request_ps:
                work += request_ps * (sum(works[b] for works in self.works) + sum(steps))
            if pairs is not None:
                work += pair_ps * sum(row[b] for row in pairs)
            for piece in engine.pieces:
                roofline = grid.cost_ps(piece.per_token_s) * tokens + grid.cost_ps(piece.base_s) * self.active[b]
                model.add(grid.tick_ps * (self.end[b] - self.start[b]) + grid.slack_ps >= work + roofline)

    def _pairs_envelope(self) -> list[list[cp_model.LinearExprT]]:
        """Twice the query-key pairs, free to move between the chunks of a prompt within what a token can cost."""
        rows: list[list[cp_model.LinearExprT]] = []
        for r, rnd in enumerate(self.rounds):
            least, most = 2 + 2 * rnd.cached_tokens, 2 * (rnd.cached_tokens + rnd.prompt_tokens)
            whole = rnd.prompt_tokens * (rnd.prompt_tokens + 1 + 2 * rnd.cached_tokens)
            row = [self.model.new_int_var(0, whole, f"q{r},{b}") for b in range(self.slots)]
            self.model.add(sum(row) == whole * self.accepted[rnd.request])
            for b in range(self.slots):
                self.model.add(row[b] >= least * self.chunk[r][b])
                self.model.add(row[b] <= most * self.chunk[r][b])
            rows.append(row)
        return rows

    def _pairs_exact(self) -> list[list[cp_model.LinearExprT]]:
        """Twice the query-key pairs of each round in each slot: differences of ``U (U + 1)``, ``U`` the tokens done."""
        model = self.model
        rows: list[list[cp_model.LinearExprT]] = []
        for r, rnd in enumerate(self.rounds):
            row: list[cp_model.LinearExprT] = []
            done_before: cp_model.LinearExprT = 0
            square_before: cp_model.LinearExprT = 0
            for b in range(self.slots):
                done = model.new_int_var(0, rnd.prompt_tokens, f"U{r},{b}")
                square = model.new_int_var(0, rnd.prompt_tokens**2, f"U2{r},{b}")
                model.add(done == done_before + self.chunk[r][b])
                model.add_multiplication_equality(square, [done, done])
                row.append(square - square_before + (1 + 2 * rnd.cached_tokens) * self.chunk[r][b])
                done_before, square_before = done, square
            rows.append(row)
        return rows

    def _kv(self) -> None:
        """Blocks held after each slot, from a round's first chunk to its last token."""
        model, engine = self.model, self.instance.engine
        if sum(engine.kv_blocks_for(r.final_context) for r in self.rounds) <= engine.kv_blocks:
            return
        size = engine.block_size_tokens
        for b in range(self.slots):
            held = []
            for r, rnd in enumerate(self.rounds):
                most = engine.kv_blocks_for(rnd.final_context)
                blocks = model.new_int_var(0, most, f"m{r},{b}")
                gone = sum(self.token[r][-1][:b])
                stored = sum(self.chunk[r][: b + 1]) + sum(sum(row[: b + 1]) for row in self.token[r][1:])
                if rnd.cached_tokens:
                    started = model.new_bool_var(f"k{r},{b}")
                    for works in self.works[r][: b + 1]:
                        model.add_implication(works, started)
                    stored += rnd.cached_tokens * started
                model.add(size * blocks >= stored - rnd.final_context * gone)
                held.append(blocks)
            model.add(sum(held) <= engine.kv_blocks)

    def _limits(self) -> None:
        """Releases and what the score rule demands."""
        model, grid = self.model, self.grid
        previous_end: cp_model.LinearExprT = 0
        for r, rnd in enumerate(self.rounds):
            moments: dict[int, cp_model.LinearExprT] = {}

            def moment(k: int, r: int = r, moments: dict[int, cp_model.LinearExprT] = moments) -> cp_model.LinearExprT:
                """End of the slot of output token `k`."""
                if k not in moments:
                    moments[k] = self._time(f"c{r},{k}")
                    for b, here in enumerate(self.token[r][k - 1]):
                        model.add(moments[k] == self.end[b]).only_enforce_if(here)
                return moments[k]

            if rnd.first:
                fixed_s = rnd.arrival_s + rnd.pause_s
                release: cp_model.LinearExprT = grid.release(fixed_s)
            else:
                fixed_s = math.nan
                release = previous_end + grid.min_lag(rnd.pause_s)
            for b in range(self.slots):
                model.add(self.start[b] >= release).only_enforce_if(self.works[r][b])
            for limit in rnd.limits:
                if limit.anchor == RELEASE and rnd.first:
                    latest: cp_model.LinearExprT = grid.deadline(fixed_s + limit.lag_s)
                elif limit.anchor == RELEASE:
                    latest = previous_end + grid.max_lag(rnd.pause_s + limit.lag_s)
                elif limit.anchor == CLOCK:
                    latest = self._clock(r, rnd, fixed_s, previous_end, moment(1)) + grid.max_lag(limit.lag_s)
                else:
                    latest = moment(limit.anchor) + grid.max_lag(limit.lag_s)
                for b, here in enumerate(self.token[r][limit.token - 1]):
                    model.add(self.end[b] <= latest).only_enforce_if(here)
            if r + 1 < len(self.rounds) and not self.rounds[r + 1].first:
                previous_end = moment(rnd.output_tokens)

    def _clock(
        self, r: int, rnd: Round, fixed_s: float, previous_end: cp_model.LinearExprT, first: cp_model.LinearExprT
    ) -> cp_model.LinearExprT:
        """The later of the first token and its deadline."""
        lag = self.grid.max_lag(rnd.pause_s + rnd.ttft_s)
        due = self.grid.deadline(fixed_s + rnd.ttft_s) if rnd.first else previous_end + lag
        clock = self.model.new_int_var(self.first_tick, self.last_tick + lag, f"clock{r}")
        self.clock_due[r] = due
        self.model.add_max_equality(clock, [due, first])
        return clock

    def _capacity(self) -> None:
        """Redundant: engine time between a release and a deadline holds all the work that must be done in between."""
        model, grid, engine = self.model, self.grid, self.instance.engine
        request_ps, pair_ps = grid.cost_ps(engine.request_s), grid.cost_ps(engine.prefill_pair_s)
        stages = [
            (i, stage, window)
            for i, windows in self.windows.items()
            for stage, window in zip(self.instance.requests[i].stages, windows, strict=True)
        ]
        releases = sorted({window.release_s for _, stage, window in stages if stage.prompt_tokens})
        dues = sorted({due for _, stage, w in stages for due in (w.first_due_s, w.due_s(stage.output_tokens))})
        for from_s in releases:
            for to_s in dues:
                if to_s <= from_s:
                    continue
                work: dict[int, int] = {}
                batches: dict[int, int] = {}
                tokens: dict[int, int] = {}
                for i, stage, window in stages:
                    if window.release_s < from_s:
                        continue
                    emitted = sum(window.due_s(k) <= to_s for k in range(1, stage.output_tokens + 1))
                    if not emitted:
                        continue
                    batches[i] = batches.get(i, 0) + emitted
                    tokens[i] = tokens.get(i, 0) + emitted + max(0, stage.prompt_tokens - 1)
                    pairs = stage.prompt_tokens * (2 * stage.cached_tokens + stage.prompt_tokens + 1) // 2
                    work[i] = work.get(i, 0) + request_ps * emitted + pair_ps * pairs
                if not batches:
                    continue
                count = model.new_int_var(0, self.slots, "")
                for i, least in batches.items():
                    model.add(count >= least * self.accepted[i])
                room_ps = (grid.deadline(to_s) - grid.release(from_s) + 1 + len(self.rounds)) * grid.tick_ps
                for piece in engine.pieces:
                    per_token, base = grid.cost_ps(piece.per_token_s), grid.cost_ps(piece.base_s + engine.host_s)
                    load = sum((work[i] + per_token * tokens[i]) * self.accepted[i] for i in batches)
                    model.add(load + base * count <= room_ps)

    def _objective(self) -> None:
        """Values as integers: exact where they are decimal numbers of six places, else rounded up."""
        values = {i: Fraction(str(self.instance.value_of(self.instance.requests[i]))) for i in self.accepted}
        scale = math.lcm(*(value.denominator for value in values.values()))
        self.scale = scale if scale <= _VALUE_SCALE else _VALUE_SCALE
        self.model.maximize(sum(math.ceil(value * self.scale) * self.accepted[i] for i, value in values.items()))
