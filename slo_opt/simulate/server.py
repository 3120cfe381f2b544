"""One replica at work: its policy is asked, its batches take their time, and what happens is recorded."""

import math
import time

import numpy as np

from slo_opt.policies.interface import Allocation, AllocationPolicy, Job, Standing
from slo_opt.simulate.life import Life
from slo_opt.simulate.options import SimulationOptions
from slo_opt.simulate.recorder import PlayedBatch, Recorder
from slo_opt.simulate.replica import IllegalAllocationError, Replica


class Server:
    """Decides, starts and finishes the batches of one replica; when they start is the business of who calls.

    Parameters
    ----------
    replica : Replica
        Empty.
    options : SimulationOptions
        How the engine differs from its model.
    recorder : Recorder
        Where batches are kept; several servers may share it.
    number : int
        Of the replica, in the schedule.

    Attributes
    ----------
    replica : Replica
        The jobs in it.
    batch : PlayedBatch or None
        The one under way.
    model_end_s : float
        When it would end by the engine model.
    """

    def __init__(self, replica: Replica, options: SimulationOptions, recorder: Recorder, number: int = 0) -> None:
        self.replica = replica
        self.batch: PlayedBatch | None = None
        self.model_end_s = -math.inf
        self._number = number
        self._options = options
        self._recorder = recorder
        # The first replica of a fleet draws what a single one would.
        self._rng = np.random.default_rng([options.seed, number] if number else options.seed)

    def ask(self, now_s: float) -> Allocation:
        """Have the policy decide; all of its answer but the batch is carried out.

        Raises
        ------
        IllegalAllocationError
            The answer breaks a rule, or is empty and asks to be woken in the past.
        """
        began_s = time.perf_counter()
        allocation = self.replica.decide(now_s)
        self._recorder.decision_s.append(time.perf_counter() - began_s)
        if not (allocation.tokens or allocation.preempted or allocation.wake_s > now_s):  # NaN too
            raise IllegalAllocationError(
                f"policy {self.replica.policy.name!r} gave an empty batch at {now_s:.6f} s and asked to be woken at "
                f"{allocation.wake_s:.6f} s, which is not later"
            )
        return allocation

    def start(self, tokens: list[tuple[Job, int]], now_s: float, factor: float = 1.0) -> float:
        """Begin a batch; when it ends.

        Parameters
        ----------
        tokens : list of (Job, int)
            `Allocation.tokens`.
        now_s : float
            The moment.
        factor : float
            By which it takes longer than the options say.
        """
        replica, options = self.replica, self._options
        entries = replica.own(tokens, now_s)
        for life, _ in entries:
            if life.standing is Standing.UNDECIDED:
                life.standing = Standing.ADMITTED
        num_running = len(replica.running)
        model_s = replica.start(entries, now_s)
        duration_s = model_s * options.slowdown * factor
        if options.noise:
            duration_s *= math.exp(self._rng.normal(-(options.noise**2) / 2, options.noise))
        dropped, replica.dropped = replica.dropped, []
        self.batch = PlayedBatch(
            start_s=now_s,
            duration_s=duration_s,
            entries=entries,
            dropped=dropped,
            num_begun=len(replica.running) - num_running,
            num_running=len(replica.running),
            num_waiting=len(replica.waiting),
        )
        self.model_end_s = now_s + model_s
        return now_s + duration_s

    def finish(self, delivered_s: float | None = None) -> list[Life]:
        """End the batch under way; those whose round ended with it.

        Parameters
        ----------
        delivered_s : float or None
            When its tokens reach the client; None for at once.
        """
        replica, batch = self.replica, self.batch
        assert batch is not None
        shown_s = batch.start_s + batch.duration_s if delivered_s is None else delivered_s
        emitted, ended = replica.finish(batch.entries, shown_s, self._accepted)
        self._recorder.add(batch, self._number, emitted, delivered_s)
        replica.last_batch_s = batch.duration_s
        self.batch = None
        return ended

    def crash(self, policy: AllocationPolicy) -> tuple[list[Life], list[Life]]:
        """Lose the batch under way and all KV, and begin anew, empty.

        Parameters
        ----------
        policy : AllocationPolicy
            Fresh.

        Returns
        -------
        lives : list of Life
            Who was in the replica.
        dropped : list of Life
            Whose KV is lost, of those and of those that had been sent away.
        """
        replica, batch = self.replica, self.batch
        num_held = len(replica.running) - (batch.num_begun if batch is not None else 0)
        holders = replica.running[:num_held]  # who began with the lost batch is as before it
        dropped = [*holders, *replica.dropped, *(batch.dropped if batch is not None else ())]
        for life in replica.running:
            life.kv_blocks = 0
        for life in holders:
            life.computed_tokens = 0
            life.decoding = False
        lives = [*replica.running, *replica.waiting]
        self.replica, self.batch = replica.renewed(policy), None
        return lives, dropped

    def _accepted(self, drafted: int) -> int:
        """Drafted tokens accepted before the first that is not."""
        rejected = self._rng.random(drafted) >= self._options.acceptance
        return int(np.argmax(rejected)) if rejected.any() else drafted
