"""What is under an SLO in a replica, summed up once for each version of its view."""

from collections.abc import Callable
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.policies.interface import Job, Standing
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.kv_peak import KvPeak

_BEST_EFFORT = Standing.BEST_EFFORT


class _Front(NamedTuple):
    """How far a queue of prompts has come after some of them: whole batches, and the share of the next one taken."""

    elapsed_s: float
    share: float
    decodes: int
    context_tokens: int


class Outlook:
    """The requests of one replica that are not of best effort: those give way to all others.

    Parameters
    ----------
    view : ReplicaView
        The replica.
    remaining : callable
        Output tokens that a job has yet to produce.

    Attributes
    ----------
    members : list of Job
        Running ones, then waiting ones.
    prompts : list of Job
        Those with tokens to prefill, first come first served.
    decodes, context_tokens : int
        Decodes, and tokens in their KV cache.
    tightest_s : float
        Least TPOT of a member that can still be attained; infinite where tokens after the first are made elsewhere.
    """

    def __init__(self, view: ReplicaView, remaining: Callable[[Job], int]) -> None:
        self._engine = view.engine
        self._remaining = remaining
        self._decodes_here = view.role is not Role.PREFILL
        self._fronts: dict[tuple[float, bool], _Front | None] = {}
        self.members: list[Job] = []
        self.prompts: list[Job] = []
        self.decodes = self.context_tokens = 0
        tightest_s = float("inf")
        members, prompts = self.members, self.prompts
        for job in chain(view.running, view.waiting):
            if job.standing is _BEST_EFFORT:
                continue
            members.append(job)
            if job.decoding:
                self.decodes += 1
                self.context_tokens += job.computed_tokens
            else:
                prompts.append(job)
            if job.tpot_s < tightest_s and not job.missed:
                tightest_s = job.tpot_s
        self.tightest_s = tightest_s if self._decodes_here else float("inf")

    def left_tokens(self, job: Job) -> int:
        """Output tokens that a job has yet to produce in this replica; none where it leaves with its prefill."""
        return self._remaining(job) if self._decodes_here else 0

    @cached_property
    def peak(self) -> KvPeak:
        """The most tokens that the members will hold together."""
        return KvPeak([job.known_tokens for job in self.members], [self.left_tokens(job) for job in self.members])

    @cached_property
    def known_tokens(self) -> int:
        """Tokens of all members' contexts."""
        return sum([job.known_tokens for job in self.members])

    def prefilled_s(self, job: Job, continuous: bool = True) -> float:
        """Seconds of batches until the prompt of a further job is prefilled, after all prompts that are here.

        Parameters
        ----------
        job : Job
            With tokens to prefill.
        continuous : bool
            Whether prompts that complete on the way then decode and leave later prompts a smaller chunk a batch;
            otherwise the chunk of the present is believed to last.

        Notes
        -----
        Batches last as long as the tightest TPOT allows, or, with no decode, as long as a full one. Decodes take their
        part of each; what is left goes to the prompts. The last batch ends when its tokens are done.
        """
        tightest_s = min(self.tightest_s, job.tpot_s) if self._decodes_here else float("inf")
        key = (tightest_s, continuous)
        if key not in self._fronts:
            front: _Front | None = _Front(0.0, 0.0, self.decodes, self.context_tokens)
            for ahead in self.prompts:
                if front is None:
                    break
                front = self._after(front, ahead, tightest_s, continuous)
            self._fronts[key] = front
        front = self._fronts[key]
        if front is None:
            return float("inf")
        done = self._after(front, job, tightest_s, continuous=False)
        if done is None:
            return float("inf")
        return self._end_s(done, done, tightest_s)

    def _period_s(self, front: _Front, tightest_s: float) -> float:
        engine = self._engine
        longest_s = engine.batch_time_s(engine.max_num_batched_tokens)
        return min(tightest_s, longest_s) if front.decodes else longest_s

    def _after(self, front: _Front, job: Job, tightest_s: float, continuous: bool) -> _Front | None:
        """Where the queue stands after one more prompt; None if decodes leave prompts no time."""
        engine, left, decodes = self._engine, job.left_tokens, front.decodes
        period_s = self._period_s(front, tightest_s)
        pairs_s = engine.prefill_pair_s * prefill_pairs(left, job.computed_tokens)
        fixed_s = (
            engine.host_s + engine.decode_context_s * front.context_tokens + engine.request_s * (front.decodes + 1)
        )
        batches = left / max(1, engine.max_num_batched_tokens - decodes)
        for piece in engine.pieces:
            room_s = period_s - fixed_s - piece.base_s - piece.per_token_s * decodes
            if room_s <= 0:
                return None
            batches = max(batches, (piece.per_token_s * left + pairs_s) / room_s)
        whole, share = divmod(front.share + batches, 1.0)
        elapsed_s = front.elapsed_s + whole * period_s
        if not (continuous and self._decodes_here):
            return front._replace(elapsed_s=elapsed_s, share=share)
        after = _Front(elapsed_s, share, decodes + 1, front.context_tokens + job.known_tokens)
        # The first decode ends the time of batches as long as one likes.
        return after if decodes else after._replace(elapsed_s=self._end_s(front, after, tightest_s), share=0.0)

    def _end_s(self, front: _Front, done: _Front, tightest_s: float) -> float:
        """When the batch ends that `done` is in the middle of, if nothing is added to it; `front` has its decodes."""
        if not done.share:
            return done.elapsed_s
        base_s = _decode_batch_s(self._engine, front)
        return done.elapsed_s + base_s + done.share * (self._period_s(front, tightest_s) - base_s)


def _decode_batch_s(engine: EngineModel, front: _Front) -> float:
    """A batch of the decodes alone."""
    return engine.batch_time_s(
        front.decodes, decode_context_tokens=front.context_tokens, num_requests=front.decodes + 1
    )
