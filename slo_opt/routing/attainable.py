"""Predictions for a replica with one more request: first token, iteration time, KV; and PolyServe's test on them."""

from slo_opt.policies.admission import Admission
from slo_opt.policies.interface import Job
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.outlook import Outlook
from slo_opt.routing.per_version import PerVersion


class Forecast:
    """What a request can expect of a replica, and what the replica becomes with it.

    Requests of best effort are left out: they give way.

    Parameters
    ----------
    lengths : LengthPredictor
        For the KV cache and the iterations to come.

    References
    ----------
    PolyServe, arXiv 2507.17769, section 4 (wait-time-aware admission, dynamic chunks, continuous prediction).
    """

    def __init__(self, lengths: LengthPredictor) -> None:
        remaining = Admission(lengths).remaining_tokens
        self._outlook = PerVersion[Outlook](lambda view: Outlook(view, remaining))

    def outlook(self, view: ReplicaView) -> Outlook:
        """What is in the replica."""
        return self._outlook(view)

    def next_token_s(
        self, job: Job, view: ReplicaView, now_s: float, *, wait_aware: bool = True, continuous: bool = True
    ) -> float:
        """Seconds until the job's next token: its first, or, where it arrives as a decode, one iteration.

        Parameters
        ----------
        job : Job
            Not yet in the view.
        view : ReplicaView
            The replica.
        now_s : float
            The moment.
        wait_aware : bool
            Whether the batch under way is waited for.
        continuous : bool
            See `Outlook.prefilled_s`.
        """
        wait_s = max(0.0, view.batch_ends_s - now_s) if wait_aware and not view.idle else 0.0
        if job.decoding:
            return wait_s + self.near_step_s(job, view)
        return wait_s + self._outlook(view).prefilled_s(job, continuous)

    def near_step_s(self, job: Job, view: ReplicaView) -> float:
        """The iteration after its next token: all members decode, with the contexts they have now."""
        outlook = self._outlook(view)
        count = len(outlook.members) + 1
        return view.engine.batch_time_s(
            count, decode_context_tokens=outlook.known_tokens + job.known_tokens, num_requests=count
        )

    def steady_step_s(self, job: Job, view: ReplicaView) -> float:
        """An iteration of all members, with the most KV that they will hold together."""
        count = len(self._outlook(view).members) + 1
        return view.engine.batch_time_s(count, decode_context_tokens=self._peak_tokens(job, view), num_requests=count)

    def kv_share(self, job: Job, view: ReplicaView) -> float:
        """Share of the KV cache, at most, that the members will hold together; above 1 if it may run short."""
        engine = view.engine
        slack = (len(self._outlook(view).members) + 1) * (engine.block_size_tokens - 1)  # blocks are filled in part
        return (self._peak_tokens(job, view) + slack) / (engine.kv_blocks * engine.block_size_tokens)

    def seats_share(self, view: ReplicaView) -> float:
        """Share of the engine's sequences that the members take."""
        return (len(self._outlook(view).members) + 1) / view.engine.max_num_seqs

    def tightest_s(self, job: Job, view: ReplicaView) -> float:
        """Least TPOT in the replica."""
        return min(self._outlook(view).tightest_s, job.tpot_s)

    def _peak_tokens(self, job: Job, view: ReplicaView) -> int:
        outlook = self._outlook(view)
        return outlook.peak.tokens_with(job.known_tokens, outlook.left_tokens(job))

    def attainable(
        self, job: Job, view: ReplicaView, now_s: float, *, wait_aware: bool = True, continuous: bool = True
    ) -> bool:
        """PolyServe's test: whether the replica can serve the job on time, and keep the pace of its tightest member.

        KV and sequences suffice; the next token is on time; of a prompt also the second, one near iteration later; and
        in the long run an iteration lasts at most the least TPOT present. Where only prompts are prefilled, the last
        two do not apply.

        Parameters
        ----------
        job, view, now_s, wait_aware, continuous
            See `next_token_s`.

        Notes
        -----
        Members' deadlines are not looked at: prompts come first come first served, and chunks keep the pace of decodes.
        """
        if self.seats_share(view) > 1 or self.kv_share(job, view) > 1:
            return False
        done_s = now_s + self.next_token_s(job, view, now_s, wait_aware=wait_aware, continuous=continuous)
        if done_s > job.due_s:
            return False
        if view.role is Role.PREFILL:
            return True
        if not job.decoding and done_s + self.near_step_s(job, view) > job.due_s + job.tpot_s:
            return False
        return self.steady_step_s(job, view) <= self.tightest_s(job, view)
