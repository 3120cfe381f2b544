"""Cuts a trace into blocks of requests whose integer programs together bound the whole: Lagrangian decomposition.

Each block keeps its own requests and the slots that they touch. Where blocks share a slot, the rows that couple them
are priced with the multipliers of the linear relaxation, and kept as hard limits of each block as well; the cost of
the batches in a shared slot is split over the blocks in proportion to what their requests ask for. For any prices >= 0

    ``sum of block optima + price @ right side of the priced rows  >=  value of every schedule``.

See formulations/README.md, level 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slo_opt.domain.instance import Instance
from slo_opt.domain.work import attainable_work
from slo_opt.formulations.fluid_grid import FluidGrid
from slo_opt.formulations.fluid_highs import FluidModel, build_fluid
from slo_opt.formulations.sparse_model import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Block:
    """Requests ``requests`` of the instance, active in coarse slots ``first:last``."""

    requests: tuple[int, ...]
    first: int
    last: int


def active_slots(instance: Instance, grid: FluidGrid) -> dict[int, tuple[int, int]]:
    """Fine slots ``first:last`` in which each request can be active."""
    prefills, decodes = attainable_work(instance)
    spans: dict[int, tuple[int, int]] = {}
    for request, release_s, due_s in [
        *((work.request, work.release_s, work.due_s) for work in prefills),
        *((work.request, work.release_s, work.last_due_s) for work in decodes),
    ]:
        first, last = grid.fine_slots(release_s, due_s)
        before = spans.get(request, (first, last))
        spans[request] = (min(first, before[0]), max(last, before[1]))
    return spans


def cut_blocks(
    instance: Instance, grid: FluidGrid, model: FluidModel, multipliers: FloatArray, target: int
) -> list[Block]:
    """Blocks of up to ``2 * target`` consecutive requests, cut where engine time is cheap.

    Parameters
    ----------
    instance, grid, model
        The relaxation of the whole trace.
    multipliers : (m,) float array
        Its row multipliers.
    target : int
        Requests a block, about.
    """
    spans = active_slots(instance, grid)
    order = sorted(spans)
    slot_price = (np.clip(multipliers[model.compute], 0, None) * grid.length_s).sum(axis=0)
    price = np.concatenate([[0.0], np.cumsum(slot_price)])
    cut_cost = [0.0]
    reach = 0
    for before, here in pairwise(order):
        reach = max(reach, spans[before][1])
        cut_cost.append(max(0.0, float(price[reach] - price[min(spans[here][0], reach)])))
    cut_cost.append(0.0)
    count = len(order)
    best, cut_before = [0.0] + [np.inf] * count, [0] * (count + 1)
    for end in range(1, count + 1):
        for begin in range(max(0, end - 2 * target), end):
            small = max(0.0, 0.5 - (end - begin) / target)
            cost = best[begin] + cut_cost[end] + 0.05 * small
            if cost < best[end]:
                best[end], cut_before[end] = cost, begin
    blocks: list[Block] = []
    end = count
    while end > 0:
        requests = order[cut_before[end] : end]
        first = int(grid.coarse_of_fine[min(spans[i][0] for i in requests)])
        last = int(grid.coarse_of_fine[max(spans[i][1] for i in requests) - 1]) + 1
        blocks.append(Block(tuple(requests), first, last))
        end = cut_before[end]
    return blocks[::-1]


class Decomposition:
    """The priced blocks of one partition.

    Parameters
    ----------
    instance, grid, model
        The relaxation of the whole trace.
    multipliers : (m,) float array
        Row multipliers of its optimum; any others are valid too.
    blocks : sequence of Block
        A partition of the requests in the relaxation.
    """

    def __init__(
        self,
        instance: Instance,
        grid: FluidGrid,
        model: FluidModel,
        multipliers: FloatArray,
        blocks: Sequence[Block],
    ) -> None:
        self.instance, self.grid, self.model, self.blocks = instance, grid, model, blocks
        self.multipliers = multipliers
        # Additive over requests: joining two blocks changes nothing for the others, so their bounds stay valid.
        self._demand = np.zeros((len(blocks), grid.num_fine))
        owner = {i: b for b, block in enumerate(blocks) for i in block.requests}
        for demand in model.demands:
            weights = self._demand[owner[demand.request]]
            weights[demand.first : demand.last] += abs(multipliers[demand.row])
            first, last = grid.coarse_of_fine[[demand.first, demand.last - 1]]
            weights[grid.coarse_start[first] : grid.coarse_start[last + 1]] += 1e-9  # present, even if it asks nothing
        self._present = self._demand > 0
        self._demand /= np.maximum(self._demand.sum(axis=0), 1e-300)
        self._cover = np.count_nonzero(self._present, axis=0)
        self._price = self._prices(self._cover)  # by family of shared rows
        self.constant = self._right_side(self._price)

    def _prices(self, cover: IntArray) -> list[FloatArray]:
        """Multipliers of the shared rows that more than one block touches; `cover` counts blocks by fine slot."""
        prices = []
        for rows, first, _ in self.model.shared:
            crowded = np.maximum.reduceat(cover, first) > 1
            prices.append(np.where(crowded, np.clip(self.multipliers[rows], 0.0, None), 0.0))
        return prices

    def _right_side(self, prices: list[FloatArray]) -> float:
        upper = self.model.arrays.row_upper
        return math.fsum(
            float(price @ upper[rows]) for price, (rows, _, _) in zip(prices, self.model.shared, strict=True)
        )

    def constant_if_joined(self, a: int, b: int) -> float:
        """The constant of the partition in which blocks `a` and `b` are one."""
        return self._right_side(self._prices(self._cover - (self._present[a] & self._present[b])))

    def _fine(self, block: Block) -> slice:
        starts = self.grid.coarse_start
        return slice(int(starts[block.first]), int(starts[block.last]))

    def problem(self, b: int) -> tuple[FluidModel, FloatArray]:
        """Model of block `b` on its own slots, and the priced objective."""
        block = self.blocks[b]
        part = self.instance.with_requests(tuple(self.instance.requests[i] for i in block.requests))
        local = build_fluid(part, self.grid.slice(block.first, block.last))
        fine = self._fine(block)
        price = np.zeros(len(local.arrays.row_lower))
        for (rows, _, _), (global_rows, _, _), values in zip(local.shared, self.model.shared, self._price, strict=True):
            offset = block.first if len(global_rows) == self.grid.num_coarse else fine.start
            price[rows] = values[offset : offset + len(rows)]
        charge = local.arrays.transposed_times(price)
        charge[local.batches] *= self._demand[b, fine]
        return local, local.arrays.cost - charge

    def merged(self, pairs: Sequence[tuple[int, int]]) -> "Decomposition":
        """The partition with each pair of blocks joined; the joined ones stand at the first's place."""
        partner = dict(pairs)
        gone = set(partner.values())
        blocks = []
        for b, block in enumerate(self.blocks):
            if b in partner:
                other = self.blocks[partner[b]]
                requests = tuple(sorted(block.requests + other.requests))
                block = Block(requests, min(block.first, other.first), max(block.last, other.last))
            if b not in gone:
                blocks.append(block)
        return Decomposition(self.instance, self.grid, self.model, self.multipliers, blocks)

    @staticmethod
    def integer_columns(local: FluidModel) -> IntArray:
        """Columns of the accepted requests."""
        return np.array(sorted(local.accept.values()), dtype=np.int64)
