"""Level 3 as a CVXPY problem, in matrix form: cumulative decode steps and batches instead of leads and sums.

Written from the statement in README.md, level 3, apart from `fluid_highs`, which carries leads from slot to slot; on
the same grid the two have the same optimum. All times are in ms.
"""

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from scipy import sparse

from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.work import DecodeWork, PrefillWork, attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid
from slo_opt.formulations.sparse_model import FloatArray, IntArray

MS = 1e3


@dataclass(frozen=True, slots=True)
class FluidProgram:
    """The relaxation as a CVXPY problem.

    Parameters
    ----------
    program : cvxpy.Problem
        A maximisation; every variable has finite bounds, every constraint is ``expression <= expression``.
    compute : tuple of cvxpy constraints, each (T,)
        Engine time of each fine slot in ms, one constraint a roofline piece.
    memory : cvxpy constraint, (C,)
        KV blocks times batches of each coarse slot.
    batches : (T,) cvxpy.Variable
        Batches of each fine slot.
    """

    program: cp.Problem
    compute: tuple[Any, ...]
    memory: Any
    batches: cp.Variable


def _matrix(rows: Any, columns: Any, values: Any, shape: tuple[int, int]) -> sparse.csr_array:
    r, c, v = np.broadcast_arrays(np.asarray(rows, np.int64), np.asarray(columns, np.int64), np.asarray(values, float))
    return sparse.csr_array((v.ravel(), (r.ravel(), c.ravel())), shape=shape)


def _ranges(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """Positions ``first[j]:last[j]`` of all ``j`` in one array, and the ``j`` of each."""
    count = last - first
    owner = np.repeat(np.arange(len(first)), count)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return np.arange(count.sum()) - start[owner] + first[owner], owner


class _Statement:
    """Variables and constraints over ``n`` requests, ``T`` fine and ``C`` coarse slots."""

    def __init__(self, instance: Instance, grid: FluidGrid) -> None:
        self.instance, self.grid, self.engine = instance, grid, instance.engine
        self.prefills, self.decodes = attainable_work(instance)
        requests = list(dict.fromkeys(work.request for work in self.prefills))
        self.position = {request: k for k, request in enumerate(requests)}
        self.value = np.array([instance.value_of(instance.requests[i]) for i in requests])
        self.accept = cp.Variable(len(requests), bounds=[0, 1], name="accept")

        engine, fine, coarse = self.engine, grid.num_fine, grid.num_coarse
        base = np.array([piece.base_s + engine.host_s - TIME_TOLERANCE_S for piece in engine.pieces])
        token = np.array([piece.per_token_s for piece in engine.pieces])
        # A batch that costs less than the overlap forgiven pays out of its tokens: there is at least one.
        self.base_ms = MS * np.maximum(base, 0)
        self.token_ms = MS * np.maximum(token + np.minimum(base, 0), 1e-15)
        self.context_ms = min(MS * engine.decode_context_s, float(self.token_ms.min()))
        self.span_ms = MS * instance.num_replicas * grid.length_s
        least_ms = float((self.base_ms + self.token_ms).max())

        self.batches = cp.Variable(fine, bounds=[np.zeros(fine), self.span_ms / least_ms], name="batches")
        total = float(self.span_ms.sum()) / least_ms
        self.count = cp.Variable(fine + 1, bounds=[0, total], name="batches so far")
        self.tokens = cp.Variable(fine, bounds=[np.zeros(fine), self.span_ms / self.token_ms.max()], name="tokens")
        self.context = cp.Variable(fine, bounds=[np.zeros(fine), self.span_ms], name="context time")
        self.coarsen = _matrix(grid.coarse_of_fine, np.arange(fine), 1.0, (coarse, fine))
        self.constraints: list[Any] = [
            self.count[1:] <= self.count[:-1] + self.batches,
            self.count[:-1] <= self.count[1:],
        ]

    def _owners(self, works: list[PrefillWork] | list[DecodeWork], of: IntArray) -> sparse.csr_array:
        """Picks the accept variable for each entry ``of`` work."""
        position = np.array([self.position[work.request] for work in works])
        return _matrix(np.arange(len(of)), position[of], 1.0, (len(of), len(self.position)))

    def _ask(self, works: Any, first: IntArray, last: IntArray, amount: FloatArray) -> None:
        """At least `amount` batches in fine slots ``first:last`` for each accepted work."""
        wanted = cp.multiply(amount, self._owners(works, np.arange(len(works))) @ self.accept)
        self.constraints.append(wanted <= self.count[last] - self.count[first])

    def prefill(self) -> None:
        """Shares of each prompt by fine slot of its window."""
        works, engine, grid = self.prefills, self.engine, self.grid
        windows = np.array([grid.fine_slots(work.release_s, work.due_s) for work in works])
        slot, owner = _ranges(windows[:, 0], windows[:, 1])
        size = len(slot)
        self.share_slot, self.share_owner = slot, owner
        self.share = cp.Variable(size, bounds=[0, 1], name="share")
        done = _matrix(owner, np.arange(size), 1.0, (len(works), size)) @ self.share
        self.constraints.append(self._owners(works, np.arange(len(works))) @ self.accept <= done)

        prompt = np.array([work.tokens for work in works], float)
        pairs_ms = MS * engine.prefill_pair_s * np.array([work.pairs for work in works])
        last_pair_ms = MS * engine.prefill_pair_s * np.array([work.cached_tokens + work.tokens for work in works])
        dearest = int(np.argmax(self.token_ms))

        def by_slot(amount: FloatArray) -> Any:
            return _matrix(slot, np.arange(size), amount[owner], (grid.num_fine, size)) @ self.share

        per_token = self.token_ms[dearest]
        self.prompt_tokens = by_slot(prompt * (per_token + pairs_ms / prompt) / (per_token + last_pair_ms))
        self.prompt_blocks = self.coarsen @ by_slot(prompt / engine.block_size_tokens)
        self.prompt_ms = [
            by_slot(token_ms * prompt + pairs_ms * (piece == dearest) + MS * engine.request_s)
            for piece, token_ms in enumerate(self.token_ms)
        ]
        self._ask(works, windows[:, 0], windows[:, 1], np.ceil(prompt / engine.max_num_batched_tokens))

    def decode_alone(self) -> tuple[Any, Any, Any]:
        """Each decode's steps so far at each coarse boundary; tokens, context time and KV blocks by coarse slot."""
        works, grid = self.decodes, self.grid
        windows = np.array([grid.coarse_slots(work.release_s, work.last_due_s) for work in works])
        slot, owner = _ranges(windows[:, 0], windows[:, 1])
        size, ends_s = len(slot), grid.coarse_s[slot + 1]
        groups = [(work, owner == k) for k, work in enumerate(works)]
        due, possible, context = np.zeros(size), np.zeros(size), np.zeros(size)
        for work, mine in groups:
            due[mine], possible[mine] = work.steps_due(ends_s[mine]), work.steps_possible(ends_s[mine])
            context[mine] = work.context_tokens + np.concatenate([[0.0], due[mine][:-1]])
        steps = np.array([work.steps for work in works], float)
        so_far = cp.Variable(size, bounds=[np.zeros(size), steps[owner]], name="steps so far")
        accepted = self._owners(works, owner) @ self.accept
        later = np.flatnonzero(np.diff(owner, prepend=-1) == 0)  # entries with a predecessor
        difference = sparse.eye_array(size, format="csr") - _matrix(later, later - 1, 1.0, (size, size))
        steps_in = difference @ so_far
        into = _matrix(slot, np.arange(size), 1.0, (grid.num_coarse, size))
        self.constraints += [
            cp.multiply(due, accepted) <= so_far,
            so_far <= cp.multiply(possible, accepted),
            np.zeros(size) <= steps_in,
            steps_in <= (self.coarsen @ self.batches)[slot],
        ]
        self._after_prefill(works, slot, owner, so_far)
        cost_ms = self.context_ms * context + MS * self.engine.request_s
        blocks = context / self.engine.block_size_tokens
        return into @ steps_in, into @ cp.multiply(cost_ms, steps_in), into @ cp.multiply(blocks, steps_in)

    def _after_prefill(self, works: list[DecodeWork], slot: IntArray, owner: IntArray, so_far: Any) -> None:
        """Share of steps done <= share of the prompt done, at coarse boundaries within the prefill's window."""
        end = self.grid.coarse_start[slot + 1]
        rows, entries, shares = [], [], []
        for entry, (k, boundary) in enumerate(zip(owner.tolist(), end.tolist(), strict=True)):
            prefill = works[k].prefill
            if prefill is None:
                continue
            first, last = np.searchsorted(self.share_owner, [prefill, prefill + 1])
            if boundary <= self.share_slot[last - 1]:
                entries.append(entry)
                done = np.arange(first, last)[self.share_slot[first:last] < boundary]
                rows += [len(entries) - 1] * len(done)
                shares += done.tolist()
        if entries:
            steps = np.array([works[owner[entry]].steps for entry in entries], float)
            values = steps[np.array(rows, np.int64)]
            prompt = _matrix(rows, shares, values, (len(entries), len(self.share_slot)))
            self.constraints.append(so_far[np.array(entries)] <= prompt @ self.share)

    def decode_pooled(self) -> tuple[Any, Any, Any]:
        """Decodes at the pace of their deadlines, and what all together are ahead; the same three by coarse slot."""
        works, grid, engine = self.decodes, self.grid, self.engine
        coarse, rows, columns = grid.num_coarse, [], []
        due: list[list[FloatArray]] = [[], [], []]
        ahead: list[list[FloatArray]] = [[], [], []]
        asks: list[tuple[DecodeWork, int, int, float]] = []
        for work in works:
            first, last = grid.coarse_slots(work.release_s, work.last_due_s)
            must, may = (f(grid.coarse_s[first + 1 : last + 1]) for f in (work.steps_due, work.steps_possible))
            rows.append(np.arange(first, last))
            columns.append(np.full(last - first, self.position[work.request]))
            for kind, amount in enumerate((self._steps, self._context_ms, self._blocks)):
                due[kind].append(np.diff(amount(work, must), prepend=0.0))
                ahead[kind].append(amount(work, may) - amount(work, must))
            start = grid.fine_slots(work.release_s, work.last_due_s)[0]
            for k in np.unique(np.linspace(0, last - first - 1, 5).astype(int)):
                if must[k] > 0:
                    asks.append((work, start, int(grid.coarse_start[first + k + 1]), float(must[k])))
        works_asking, starts, ends, amounts = zip(*asks, strict=True)
        self._ask(list(works_asking), np.array(starts), np.array(ends), np.array(amounts))
        row, column = np.concatenate(rows), np.concatenate(columns)
        shape = (coarse, len(self.position))
        most_context = sum(float(work.context_of(np.array(float(work.steps)))) for work in works)
        most_steps = float(sum(work.steps for work in works))
        most = (
            most_steps,
            self.context_ms * most_context + MS * engine.request_s * most_steps,
            most_context / engine.block_size_tokens,
        )
        change = sparse.eye_array(coarse, format="csr") - sparse.eye_array(coarse, k=-1, format="csr")
        totals = []
        for kind in range(3):
            lead = cp.Variable(coarse, bounds=[0, most[kind]], name=f"lead {kind}")
            self.constraints.append(lead <= _matrix(row, column, np.concatenate(ahead[kind]), shape) @ self.accept)
            paced = _matrix(row, column, np.concatenate(due[kind]), shape) @ self.accept
            totals.append(paced + change @ lead)
        return totals[0], totals[1], totals[2]

    def _steps(self, work: DecodeWork, steps: FloatArray) -> FloatArray:
        return steps

    def _context_ms(self, work: DecodeWork, steps: FloatArray) -> FloatArray:
        return self.context_ms * work.context_of(steps) + MS * self.engine.request_s * steps

    def _blocks(self, work: DecodeWork, steps: FloatArray) -> FloatArray:
        return work.context_of(steps) / self.engine.block_size_tokens

    def finish(self) -> FluidProgram:
        """The problem."""
        engine = self.engine
        self.prefill()
        blocks = np.zeros(self.grid.num_coarse)
        if self.decodes:
            tokens, context, blocks = self.decode_pooled() if self.grid.pooled else self.decode_alone()
            self.constraints += [
                tokens <= self.coarsen @ self.tokens,
                context <= self.coarsen @ self.context,
            ]
        compute = tuple(
            token_ms * self.tokens + self.context + prompt_ms + base_ms * self.batches <= self.span_ms
            for token_ms, base_ms, prompt_ms in zip(self.token_ms, self.base_ms, self.prompt_ms, strict=True)
        )
        memory = blocks + self.prompt_blocks <= engine.kv_blocks * (self.coarsen @ self.batches)
        self.constraints += [
            *compute,
            memory,
            self.tokens + self.prompt_tokens <= engine.max_num_batched_tokens * self.batches,
            self.tokens <= engine.max_num_seqs * self.batches,
        ]
        program = cp.Problem(cp.Maximize(self.value @ self.accept), self.constraints)
        return FluidProgram(program, compute, memory, self.batches)


def fluid_program(instance: Instance, grid: FluidGrid) -> FluidProgram:
    """State the relaxation.

    Parameters
    ----------
    instance : Instance
        At least one request must be attainable on its own.
    grid : FluidGrid
        Slots that cover every window.

    References
    ----------
    formulations/README.md, level 3.
    """
    return _Statement(instance, grid).finish()
