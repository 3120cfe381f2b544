"""Bid prices: how much of the scarcest resource a unit of value may take, learned from the arrivals of late.

While more arrives than can be served, a request that takes much of the scarce resource displaces several that take
little, most of which have not arrived yet. The fractional knapsack over the arrivals of the last seconds tells the
least value per unit of resource that is still worth serving: the shadow price of the linear relaxation of the window.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.engine import EngineModel, prefill_pairs

_LEAST_S = 1e-12  # a request may take nothing of what is scarce


class BidPrices:
    """Shadow prices of engine time and KV memory over a sliding window.

    Resources are the roofline pieces, each with the share of time that its fixed cost leaves at the tightest TPOT, and
    the KV cache, as blocks held over time.

    Parameters
    ----------
    engine : EngineModel
        Its batch times and cache.
    period_s : float
        Time between batches, over which their fixed costs are spread.
    window_s : float
        Arrivals remembered.
    load : float
        Share of the resources that is sold; above 1 it relies on what will be declined for other reasons.
    """

    def __init__(self, engine: EngineModel, period_s: float, window_s: float, load: float) -> None:
        self._engine = engine
        self._window_s = window_s
        self._load = load
        fixed_s = np.array([piece.base_s + engine.host_s for piece in engine.pieces])
        self._supply = np.append(np.maximum(1 - fixed_s / period_s, 0.05), float(engine.kv_blocks))
        self._per_token_s = np.array([piece.per_token_s for piece in engine.pieces])
        self._recent: deque[tuple[float, float, NDArray[np.float64]]] = deque()
        self._began_s: float | None = None

    def usage(self, prompt_tokens: int, past_tokens: int, output_tokens: int, tpot_s: float) -> NDArray[np.float64]:
        """Seconds of the resources that a request takes, each with all of its supply."""
        engine = self._engine
        context = past_tokens + prompt_tokens + output_tokens / 2
        other_s = engine.prefill_pair_s * prefill_pairs(prompt_tokens, past_tokens)
        other_s += output_tokens * (engine.decode_context_s * context + engine.request_s)
        times = self._per_token_s * (prompt_tokens + output_tokens) + other_s
        blocks = context / engine.block_size_tokens * output_tokens * tpot_s
        taken: NDArray[np.float64] = np.append(times, blocks) / self._supply
        return taken

    def arrived(self, now_s: float, value: float, usage: NDArray[np.float64]) -> None:
        """Remember an arrival."""
        if self._began_s is None:
            self._began_s = now_s
        self._recent.append((now_s, value, usage))

    def prices(self, now_s: float) -> NDArray[np.float64]:
        """Value that a second of each resource must bring; 0 for what is not scarce."""
        while self._recent and self._recent[0][0] < now_s - self._window_s:
            self._recent.popleft()
        none = np.zeros(len(self._supply))
        if self._began_s is None or not self._recent:
            return none
        span_s = min(self._window_s, max(now_s - self._began_s, self._window_s / 4))
        usage = np.array([item[2] for item in self._recent])
        scarce = int(np.argmax(usage.sum(axis=0)))
        column = usage[:, scarce]
        supply_s = self._load * span_s
        if column.sum() <= supply_s:
            return none
        density = np.array([item[1] for item in self._recent]) / np.maximum(column, _LEAST_S)
        order = np.argsort(-density)
        last = int(np.searchsorted(np.cumsum(column[order]), supply_s))
        none[scarce] = density[order[min(last, len(order) - 1)]]  # the two sums round differently
        return none
