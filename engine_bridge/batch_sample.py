"""One batch as it was run: what the engine model looks at, and how long it took."""

import math
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class BatchSample:
    """What was in a batch, in the terms of `EngineModel.batch_time_s`, and its measured time.

    Nothing is checked on construction: one is made for every batch of a running engine. See `usable`.

    Parameters
    ----------
    num_tokens : int
        Scheduled tokens: prefill, decode and speculated ones.
    decode_context_tokens : float
        Tokens already in the KV cache, summed over the decoding requests.
    prefill_pairs : float
        Query-key pairs of its prefill chunks, `slo_opt.domain.engine.prefill_pairs`.
    num_requests : int
        Requests in it.
    draft_steps : int
        Steps of the draft model before it.
    seconds : float
        Measured; 0 in a batch that has not run.
    """

    num_tokens: int
    decode_context_tokens: float = 0.0
    prefill_pairs: float = 0.0
    num_requests: int = 0
    draft_steps: int = 0
    seconds: float = 0.0

    def timed(self, seconds: float) -> Self:
        """The same batch, run in `seconds`."""
        return replace(self, seconds=seconds)

    @property
    def usable(self) -> bool:
        """Whether a model can be fitted to it: tokens, a positive time, nothing negative, nothing infinite."""
        seconds = self.seconds
        # A sum is finite only if each part is; NaN fails every comparison.
        total = self.num_tokens + self.decode_context_tokens + self.prefill_pairs + self.num_requests + self.draft_steps
        return (
            1e-7 <= seconds <= 1e4
            and 0 < self.num_tokens <= 1e12
            and self.decode_context_tokens >= 0
            and self.prefill_pairs >= 0
            and self.num_requests >= 0
            and self.draft_steps >= 0
            and math.isfinite(total)
            and total <= 1e18
        )
