"""A batch in the making: what it holds, how long it will take, what still fits."""

import math
from collections.abc import Sequence

from slo_opt.domain.engine import prefill_pairs
from slo_opt.policies.interface import EngineSnapshot, Job


class BatchBuilder:
    """Collects the entries of one batch within the limits of the engine.

    Parameters
    ----------
    snapshot : EngineSnapshot
        State of the replica.
    max_tokens : int or None
        Token budget; None for the engine's `max_num_batched_tokens`.

    Attributes
    ----------
    entries : list of (Job, int)
        What was added.
    tokens_left, seqs_left, free_blocks : int
        What is left of the limits.
    """

    def __init__(self, snapshot: EngineSnapshot, max_tokens: int | None = None) -> None:
        self._engine = engine = snapshot.engine
        limit = engine.max_num_batched_tokens
        self.entries: list[tuple[Job, int]] = []
        self.tokens_left = limit if max_tokens is None else min(limit, max_tokens)
        self.seqs_left = engine.max_num_seqs
        self.free_blocks = snapshot.free_kv_blocks
        self.num_tokens = 0
        self.draft_steps = 0
        self._context = 0
        self._pairs = 0.0
        self._block = engine.block_size_tokens

    def blocks_for(self, job: Job, tokens: int) -> int:
        """Further KV blocks that a job takes with `tokens` more tokens."""
        return -(-(job.computed_tokens + tokens) // self._block) - job.kv_blocks

    def add(self, job: Job, tokens: int) -> bool:
        """Add an entry if tokens, sequences and KV blocks allow; whether it was added."""
        if tokens < 1 or tokens > self.tokens_left or self.seqs_left < 1:
            return False
        blocks = -(-(job.computed_tokens + tokens) // self._block) - job.kv_blocks
        if blocks > self.free_blocks:
            return False
        self.free_blocks -= blocks
        self.tokens_left -= tokens
        self.seqs_left -= 1
        self.num_tokens += tokens
        if job.decoding:
            self._context += job.computed_tokens
            if tokens > 1:
                self.draft_steps = max(self.draft_steps, tokens - 1)
        else:
            self._pairs += prefill_pairs(tokens, job.computed_tokens)
        self.entries.append((job, tokens))
        return True

    def add_decodes(self, jobs: Sequence[Job]) -> int:
        """Add one token of each decode up to the first that does not fit; how many were added."""
        block, free, context = self._block, self.free_blocks, 0
        most = min(len(jobs), self.tokens_left, self.seqs_left)
        added = 0
        for job in jobs if most == len(jobs) else jobs[:most]:
            computed = job.computed_tokens
            if computed >= job.kv_blocks * block:
                if not free:
                    break
                free -= 1
            context += computed
            added += 1
        self.free_blocks = free
        self._context += context
        self.tokens_left -= added
        self.seqs_left -= added
        self.num_tokens += added
        self.entries += [(job, 1) for job in (jobs if added == len(jobs) else jobs[:added])]
        return added

    def decode_s(self, job: Job) -> float:
        """Seconds, at most, by which one token of a decode makes the batch longer."""
        engine = self._engine
        slope_s = max([piece.per_token_s for piece in engine.pieces])
        return slope_s + engine.request_s + engine.decode_context_s * job.computed_tokens

    def cap(self, tokens: int) -> None:
        """Let the batch hold no more than `tokens` tokens; what it holds already stays."""
        self.tokens_left = max(0, min(self.tokens_left, tokens - self.num_tokens))

    def drop(self, job: Job) -> bool:
        """Give back the blocks of a job that is preempted, and take it out of the batch; whether it was in."""
        self.free_blocks += job.kv_blocks
        for position, (entered, _) in enumerate(self.entries):
            if entered is job:
                self.remove(position)
                return True
        return False

    def remove(self, position: int) -> tuple[Job, int]:
        """Take the entry at `position` out again."""
        job, tokens = self.entries.pop(position)
        self.free_blocks += self.blocks_for(job, tokens)
        self.tokens_left += tokens
        self.seqs_left += 1
        self.num_tokens -= tokens
        if job.decoding:
            self._context -= job.computed_tokens
            if tokens > 1:
                drafts = (count - 1 for other, count in self.entries if other.decoding)
                self.draft_steps = max(drafts, default=0)
        else:
            self._pairs -= prefill_pairs(tokens, job.computed_tokens)
        return job, tokens

    @property
    def time_s(self) -> float:
        """Seconds that the batch will take."""
        return self._engine.batch_time_s(
            self.num_tokens,
            decode_context_tokens=self._context,
            prefill_pairs=self._pairs,
            num_requests=len(self.entries),
            draft_steps=self.draft_steps,
        )

    def chunk_within(self, job: Job, seconds: float) -> int:
        """Most prefill tokens of a job with which the batch lasts at most `seconds`, within all limits; 0 if none."""
        most = min(job.known_tokens - job.computed_tokens, self.tokens_left)
        if self.seqs_left < 1:
            return 0
        most = min(most, (self.free_blocks + job.kv_blocks) * self._block - job.computed_tokens)
        if most < 1 or seconds == math.inf:
            return max(most, 0)
        engine, past = self._engine, job.computed_tokens
        fixed_s = (
            engine.decode_context_s * self._context
            + engine.prefill_pair_s * self._pairs
            + engine.request_s * (len(self.entries) + 1)
            + engine.host_s
        )
        # Largest x with per_token * x + pair * x * (past + (x + 1) / 2) <= left on every piece.
        best = float(most)
        curve = engine.prefill_pair_s / 2
        for piece in engine.pieces:
            left_s = (
                seconds
                - fixed_s
                - piece.base_s
                - piece.per_token_s * self.num_tokens
                - piece.per_draft_step_s * self.draft_steps
            )
            if left_s <= 0:
                return 0
            slope = piece.per_token_s + engine.prefill_pair_s * (past + 0.5)
            if slope > 0:
                best = min(best, 2 * left_s / (slope + math.sqrt(slope * slope + 4 * curve * left_s)))
        return int(best + 1e-9)
