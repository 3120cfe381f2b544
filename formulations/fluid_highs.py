"""Level 3: the fluid relaxation of a whole trace, as arrays for HiGHS. Statement and proof: README.md here.

Every non-speculative schedule, spread evenly over the time its batches take, is a feasible point: the optimum is an
upper bound on the value that any scheduler attains on the trace.
"""

from dataclasses import dataclass

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.work import DecodeWork, PrefillWork, attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid
from slo_opt.formulations.sparse_model import FloatArray, IntArray, ModelArrays, SparseModel


@dataclass(frozen=True, slots=True)
class BatchDemand:
    """A row that asks for batches in fine slots ``first:last`` on behalf of one request."""

    row: int
    request: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class FluidModel:
    """The relaxation, and where to find things in it.

    Parameters
    ----------
    arrays : ModelArrays
        The linear model; integrality of `accept` is optional.
    accept : dict of int to int
        Column of ``x_i`` by request.
    batches : (T,) int array
        Columns ``g_t``.
    compute : (L, T) int array
        Rows of engine time.
    shared : tuple of (rows, first fine slot, end of fine slots)
        All rows that couple requests through a resource.
    demands : tuple of BatchDemand
        Rows that tie requests to ``g``.
    """

    arrays: ModelArrays
    accept: dict[int, int]
    batches: IntArray
    compute: IntArray
    shared: tuple[tuple[IntArray, IntArray, IntArray], ...]
    demands: tuple[BatchDemand, ...]


class _Builder:
    """Adds the resources first, then each request's work."""

    def __init__(self, instance: Instance, grid: FluidGrid) -> None:
        self.instance, self.grid = instance, grid
        self.engine: EngineModel = instance.engine
        self.model = SparseModel()
        self.accept: dict[int, int] = {}
        self.demands: list[BatchDemand] = []
        # Starts may overlap the batch before by the evaluator's tolerance; every batch has at least one token.
        base_s = np.array([piece.base_s + self.engine.host_s - TIME_TOLERANCE_S for piece in self.engine.pieces])
        token_s = np.array([piece.per_token_s for piece in self.engine.pieces])
        self.base_s, self.token_s = np.maximum(base_s, 0.0), np.maximum(token_s + np.minimum(base_s, 0.0), 1e-15)
        # A token that comes out of a re-prefill after preemption costs per_token_s for each context token instead.
        self.context_s = min(self.engine.decode_context_s, float(self.token_s.min()))
        self._resources()

    def _resources(self) -> None:
        model, grid, engine = self.model, self.grid, self.engine
        fine, coarse = grid.num_fine, grid.num_coarse
        span_s = self.instance.num_replicas * grid.length_s
        least_batch_s = float((self.base_s + self.token_s).max())
        self.g = model.columns(fine, span_s / least_batch_s)
        self.v = model.columns(fine, span_s / float(self.token_s.max()))
        self.s = model.columns(fine, span_s)
        self.compute = np.array([model.rows(fine, upper=span_s) for _ in engine.pieces])
        for rows, base_s, token_s in zip(self.compute, self.base_s, self.token_s, strict=True):
            model.add(rows, self.g, base_s)
            model.add(rows, self.v, token_s)
            model.add(rows, self.s, 1.0)
        self.token_limit = model.rows(fine, upper=0.0)
        model.add(self.token_limit, self.v, 1.0)
        model.add(self.token_limit, self.g, -float(engine.max_num_batched_tokens))
        self.sequence_limit = model.rows(fine, upper=0.0)
        model.add(self.sequence_limit, self.v, 1.0)
        model.add(self.sequence_limit, self.g, -float(engine.max_num_seqs))
        self.kv = model.rows(coarse, upper=0.0)
        model.add(self.kv[grid.coarse_of_fine], self.g, -float(engine.kv_blocks))
        # Decode tokens, and what their context costs, by coarse slot.
        self.v_coarse = model.rows(coarse, lower=0.0)
        model.add(self.v_coarse[grid.coarse_of_fine], self.v, 1.0)
        self.s_coarse = model.rows(coarse, lower=0.0)
        model.add(self.s_coarse[grid.coarse_of_fine], self.s, 1e3)
        # Batches by coarse slot keep the rows of long decodes short.
        self.g_coarse = model.columns(coarse, span_s.sum() / least_batch_s)
        balance = model.rows(coarse, lower=0.0, upper=0.0)
        model.add(balance[grid.coarse_of_fine], self.g, 1.0)
        model.add(balance, self.g_coarse, -1.0)

    def _demand(self, request: int, first: int, last: int, batches: float) -> None:
        """At least `batches` batches in fine slots ``first:last`` if the request is accepted."""
        row = self.model.rows(1, lower=0.0)
        coarse_first, coarse_last = self.grid.coarse_inside(first, last)
        if coarse_last > coarse_first:
            inner = self.grid.coarse_start[[coarse_first, coarse_last]]
            fine = np.concatenate([np.arange(first, inner[0]), np.arange(inner[1], last)])
            self.model.add(row, self.g_coarse[coarse_first:coarse_last], 1.0)
        else:
            fine = np.arange(first, last)
        self.model.add(row, self.g[fine], 1.0)
        self.model.add(row, self.accept[request], -batches)
        self.demands.append(BatchDemand(int(row[0]), request, first, last))

    def accept_column(self, request: int) -> None:
        """``x_i``, once a request."""
        if request not in self.accept:
            value = self.instance.value_of(self.instance.requests[request])
            self.accept[request] = int(self.model.columns(1, 1.0, cost=value)[0])

    def prefill(self, work: PrefillWork) -> tuple[int, IntArray]:
        """Prefill inside its window; first fine slot and the columns of its shares by slot."""
        model, engine = self.model, self.engine
        first, last = self.grid.fine_slots(work.release_s, work.due_s)
        x, slots = self.accept[work.request], np.arange(first, last)
        share = model.columns(last - first, 1.0)
        row = model.rows(1, lower=0.0)
        model.add(row, share, 1.0)
        model.add(row, x, -1.0)
        dearest = int(np.argmax(self.token_s))
        for piece, (rows, token_s) in enumerate(zip(self.compute, self.token_s, strict=True)):
            # `share` measures work on the dearest piece; of the others it covers the tokens alone (README).
            pairs_s = engine.prefill_pair_s * work.pairs if piece == dearest else 0.0
            model.add(rows[slots], share, token_s * work.tokens + pairs_s + engine.request_s)
        # A late chunk is a larger share of the work than of the tokens: its tokens attend to more.
        last_pair_s = engine.prefill_pair_s * (work.cached_tokens + work.tokens)
        mean_pair_s = engine.prefill_pair_s * work.pairs / work.tokens
        dearest_s = float(self.token_s[dearest])
        model.add(self.token_limit[slots], share, work.tokens * (dearest_s + mean_pair_s) / (dearest_s + last_pair_s))
        model.add(self.kv[self.grid.coarse_of_fine[slots]], share, work.tokens / engine.block_size_tokens)
        self._demand(work.request, first, last, float(-(-work.tokens // engine.max_num_batched_tokens)))
        return first, share

    def _context_seconds(self, work: DecodeWork, steps: FloatArray) -> FloatArray:
        return self.context_s * work.context_of(steps) + self.engine.request_s * steps

    def _kv_blocks(self, work: DecodeWork, steps: FloatArray) -> FloatArray:
        return work.context_of(steps) / self.engine.block_size_tokens

    def decode_alone(self, work: DecodeWork, prefill: tuple[int, IntArray] | None) -> None:
        """A decode with a lead of its own: how far it is ahead of its due steps at each coarse boundary."""
        model, grid = self.model, self.grid
        first, last = grid.coarse_slots(work.release_s, work.last_due_s)
        slots, ends_s = np.arange(first, last), grid.coarse_s[first + 1 : last + 1]
        due, possible = work.steps_due(ends_s), work.steps_possible(ends_s)
        x, count = self.accept[work.request], last - first
        lead = model.columns(count - 1, (possible - due)[:-1])
        before = np.concatenate([[0.0], due[:-1]])

        def steps_into(rows: IntArray, factor: FloatArray | float) -> None:
            factors = np.broadcast_to(np.asarray(factor, float), count)
            model.add(rows, x, factors * (due - before))
            model.add(rows[:-1], lead, factors[:-1])
            model.add(rows[1:], lead, -factors[1:])

        # A step in a slot has at least the context of those due before the slot.
        context = work.context_tokens + before
        steps_into(self.v_coarse[slots], -1.0)
        steps_into(self.s_coarse[slots], -1e3 * (self.context_s * context + self.engine.request_s))
        steps_into(self.kv[slots], context / self.engine.block_size_tokens)
        steps_into(model.rows(count, lower=0.0), 1.0)
        one_a_batch = model.rows(count, upper=0.0)
        steps_into(one_a_batch, 1.0)
        model.add(one_a_batch, self.g_coarse[slots], -1.0)
        self.demands += [
            BatchDemand(int(row), work.request, int(a), int(b))
            for row, a, b in zip(one_a_batch, grid.coarse_start[slots], grid.coarse_start[slots + 1], strict=True)
        ]
        no_more_than_possible = model.rows(count - 1, upper=0.0)
        model.add(no_more_than_possible, x, (due - possible)[:-1])
        model.add(no_more_than_possible, lead, 1.0)
        if prefill is not None:
            self._after_prefill(work, prefill, first, due, lead)

    def _after_prefill(
        self, work: DecodeWork, prefill: tuple[int, IntArray], first: int, due: FloatArray, lead: IntArray
    ) -> None:
        """Share of steps done <= share of the prompt done, at coarse boundaries inside the prefill's window."""
        start, share = prefill
        for k in range(len(lead)):
            end = int(self.grid.coarse_start[first + k + 1])
            if end >= start + len(share):
                break
            row = self.model.rows(1, upper=0.0)
            self.model.add(row, lead[k], 1.0)
            self.model.add(row, self.accept[work.request], due[k])
            self.model.add(row, share[: max(0, end - start)], -float(work.steps))

    def decode_pooled(self, work: DecodeWork) -> None:
        """A decode whose lead is pooled with all others': few columns where decodes are long."""
        model, grid = self.model, self.grid
        first, last = grid.coarse_slots(work.release_s, work.last_due_s)
        slots, ends_s = np.arange(first, last), grid.coarse_s[first + 1 : last + 1]
        due, possible = work.steps_due(ends_s), work.steps_possible(ends_s)
        x = self.accept[work.request]
        for rows, caps, amount, sign in (
            (self.v_coarse, self.lead_caps[0], lambda steps: steps, -1.0),
            (self.s_coarse, self.lead_caps[1], lambda steps: 1e3 * self._context_seconds(work, steps), -1.0),
            (self.kv, self.lead_caps[2], lambda steps: self._kv_blocks(work, steps), 1.0),
        ):
            done = amount(due)
            model.add(rows[slots], x, sign * np.diff(done, prepend=0.0))
            model.add(caps[slots], x, done - amount(possible))
        start = grid.fine_slots(work.release_s, work.last_due_s)[0]
        for k in np.unique(np.linspace(0, len(slots) - 1, 5).astype(int)):
            if due[k] > 0:
                self._demand(work.request, start, int(grid.coarse_start[first + k + 1]), float(due[k]))

    def pooled_leads(self, decodes: list[DecodeWork]) -> None:
        """Leads over all decodes together: tokens, context seconds and KV blocks ahead of what is due."""
        tokens = float(sum(work.steps for work in decodes))
        context = float(sum(float(work.context_of(np.array(float(work.steps)))) for work in decodes))
        uppers = (
            tokens,
            1e3 * (self.context_s * context + self.engine.request_s * tokens),
            context / self.engine.block_size_tokens,
        )
        self.lead_caps = []
        for rows, upper, sign in zip((self.v_coarse, self.s_coarse, self.kv), uppers, (-1.0, -1.0, 1.0), strict=True):
            lead = self.model.columns(self.grid.num_coarse, upper)
            self.model.add(rows, lead, sign)
            self.model.add(rows[1:], lead[:-1], -sign)
            caps = self.model.rows(self.grid.num_coarse, upper=0.0)
            self.model.add(caps, lead, 1.0)
            self.lead_caps.append(caps)

    def finish(self) -> FluidModel:
        """The arrays."""
        grid = self.grid
        fine = np.arange(grid.num_fine)
        per_fine = [(rows, fine, fine + 1) for rows in (*self.compute, self.token_limit, self.sequence_limit)]
        return FluidModel(
            arrays=self.model.arrays(),
            accept=self.accept,
            batches=self.g,
            compute=self.compute,
            shared=(*per_fine, (self.kv, grid.coarse_start[:-1], grid.coarse_start[1:])),
            demands=tuple(self.demands),
        )


def build_fluid(instance: Instance, grid: FluidGrid) -> FluidModel:
    """The relaxation over the given grid.

    Parameters
    ----------
    instance : Instance
        Requests that do not count, or that nothing can attain, are left out.
    grid : FluidGrid
        Slots; must cover every window.

    Returns
    -------
    FluidModel
        Maximise the value of accepted requests.

    References
    ----------
    formulations/README.md, level 3.
    """
    prefills, decodes = attainable_work(instance)
    builder = _Builder(instance, grid)
    if grid.pooled:
        builder.pooled_leads(decodes)
    shares: list[tuple[int, IntArray]] = []
    for prefill in prefills:
        builder.accept_column(prefill.request)
        shares.append(builder.prefill(prefill))
    for decode in decodes:
        if grid.pooled:
            builder.decode_pooled(decode)
        else:
            builder.decode_alone(decode, None if decode.prefill is None else shares[decode.prefill])
    return builder.finish()
