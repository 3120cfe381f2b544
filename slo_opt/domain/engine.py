"""The engine model: how long a batch takes, how much KV memory a request holds, what fits in a batch.

``T = max_l(k_l * N + d_l * steps + b_l) + c_dec * S + c_pf * Q + r * n + c0`` seconds, where ``N`` is the number of
scheduled tokens, ``S`` the context tokens that decodes attend to, ``Q`` the query-key pairs of prefill chunks,
``n`` the number of requests and ``steps`` the draft steps of speculative decoding.
"""

import math
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class RooflinePiece:
    """One linear piece of the batch time: memory bound, compute bound.

    Parameters
    ----------
    per_token_s : float
        ``k_l``, seconds a scheduled token.
    base_s : float
        ``b_l``, seconds a batch.
    per_draft_step_s : float
        ``d_l``, seconds a draft step of speculative decoding.
    """

    per_token_s: float
    base_s: float
    per_draft_step_s: float = 0.0


def prefill_pairs(chunk_tokens: int, past_tokens: int) -> float:
    """Query-key pairs of a prefill chunk: ``chunk * (past + (chunk + 1) / 2)``."""
    return chunk_tokens * (past_tokens + (chunk_tokens + 1) / 2)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model on a GPU: batch time, KV cache and batch limits.

    Parameters
    ----------
    name, source : str
        What it is and where its figures come from.
    pieces : tuple of RooflinePiece
        The batch time is at least each of them.
    decode_context_s : float
        ``c_dec``, seconds a context token of a decode.
    prefill_pair_s : float
        ``c_pf``, seconds a query-key pair of prefill.
    request_s : float
        ``r``, seconds a request in the batch.
    host_s : float
        ``c0``, seconds of host time a batch.
    block_size_tokens, kv_blocks : int
        Tokens a KV block, and blocks in the cache.
    max_num_batched_tokens, max_num_seqs, max_model_len : int
        The engine's own limits: tokens and requests a batch, prompt + output tokens a request.
    """

    name: str
    source: str
    pieces: tuple[RooflinePiece, ...]
    decode_context_s: float = 0.0
    prefill_pair_s: float = 0.0
    request_s: float = 0.0
    host_s: float = 0.0
    block_size_tokens: int = 16
    kv_blocks: int = 1 << 20
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 8192

    def __post_init__(self) -> None:
        if not self.pieces:
            raise InvalidInputError(f"engine {self.name!r} has no roofline piece; give at least one")
        times = [self.decode_context_s, self.prefill_pair_s, self.request_s, self.host_s]
        for piece in self.pieces:
            times += [piece.per_token_s, piece.base_s, piece.per_draft_step_s]
        if not all(math.isfinite(value) and 0 <= value < 1e4 for value in times):
            raise InvalidInputError(f"engine {self.name!r}: every time must be seconds in [0, 1e4)")
        if not any(piece.per_token_s > 0 for piece in self.pieces):
            raise InvalidInputError(f"engine {self.name!r}: some piece must cost time for each token")
        for field in ("block_size_tokens", "kv_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            value = getattr(self, field)
            if not 1 <= value <= 1 << 40:
                raise InvalidInputError(f"engine {self.name!r}: {field} is {value}; expected an integer >= 1")

    def batch_time_s(
        self,
        num_tokens: int,
        *,
        decode_context_tokens: float = 0.0,
        prefill_pairs: float = 0.0,
        num_requests: int = 0,
        draft_steps: int = 0,
    ) -> float:
        """Seconds that one batch takes.

        Parameters
        ----------
        num_tokens : int
            ``N``: prefill, decode and speculated tokens.
        decode_context_tokens : float
            ``S``: tokens already in the KV cache, summed over the decoding requests.
        prefill_pairs : float
            ``Q``: see `prefill_pairs`.
        num_requests : int
            ``n``: requests in the batch.
        draft_steps : int
            Steps of the draft model before the batch.
        """
        roofline = max(
            piece.per_token_s * num_tokens + piece.per_draft_step_s * draft_steps + piece.base_s
            for piece in self.pieces
        )
        return (
            roofline
            + self.decode_context_s * decode_context_tokens
            + self.prefill_pair_s * prefill_pairs
            + self.request_s * num_requests
            + self.host_s
        )

    def max_tokens_within(
        self, seconds: float, *, decode_context_tokens: float = 0.0, num_requests: int = 0, draft_steps: int = 0
    ) -> int:
        """Most scheduled tokens of a batch that ends within `seconds`; 0 if not even an empty one does.

        The inverse of `batch_time_s` at given context and requests, without prefill pairs (the ``time2bs`` of
        SLOs-Serve, arXiv 2504.08784, section 3), capped at `max_num_batched_tokens`.
        """
        fixed_s = self.decode_context_s * decode_context_tokens + self.request_s * num_requests + self.host_s
        left_s = seconds - fixed_s
        most = float(self.max_num_batched_tokens)
        for piece in self.pieces:
            spare_s = left_s - piece.base_s - piece.per_draft_step_s * draft_steps
            if spare_s < 0:
                return 0
            if piece.per_token_s > 0:
                most = min(most, spare_s / piece.per_token_s)
        return math.floor(most + 1e-9)

    def least_prefill_s(self, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Lower bound on the engine time of a prefill, however it is cut into chunks.

        ``m = ceil(p / max_num_batched_tokens)`` batches are needed. Each piece summed over any ``m' >= m`` batches is
        at least ``k_l * p + m * b_l``, and the pairs of the chunks add up to those of the whole prompt. Equal to
        `zero_load_ttft_s` for a prompt that fits in one batch; below it for a longer one, where even chunks beat full
        batches and a rest.
        """
        batches = -(-prompt_tokens // self.max_num_batched_tokens)
        roofline = max(piece.per_token_s * prompt_tokens + piece.base_s * batches for piece in self.pieces)
        pairs = prefill_pairs(prompt_tokens, cached_tokens)
        # Summed in the order of `batch_time_s`, so that one batch takes the same time to the digit.
        return roofline + self.prefill_pair_s * pairs + batches * self.request_s + batches * self.host_s

    def least_step_s(self, context_tokens: int) -> float:
        """Lower bound on the engine time between two tokens of a request, at `context_tokens` in its KV cache.

        A decode step alone in its batch, or, for a request that was preempted, its re-prefill.
        """
        step_s = self.batch_time_s(1, decode_context_tokens=context_tokens, num_requests=1)
        return min(step_s, self.least_prefill_s(context_tokens + 1))

    def zero_load_ttft_s(self, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds from arrival to first token on an idle engine: ``T0(p)``.

        One batch that holds exactly the prompt, or full batches of `max_num_batched_tokens` and the rest.
        """
        total_s = 0.0
        done = 0
        while done < prompt_tokens:
            chunk = min(prompt_tokens - done, self.max_num_batched_tokens)
            pairs = prefill_pairs(chunk, cached_tokens + done)
            total_s += self.batch_time_s(chunk, prefill_pairs=pairs, num_requests=1)
            done += chunk
        return total_s

    def kv_blocks_for(self, tokens: int) -> int:
        """KV blocks that hold `tokens` tokens of one request."""
        return -(-tokens // self.block_size_tokens)
