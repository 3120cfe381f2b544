"""What a simulation leaves behind."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.evaluate import Evaluation, evaluate
from slo_opt.domain.instance import Instance
from slo_opt.domain.schedule import Schedule


@dataclass(frozen=True)
class Run:
    """One policy on one instance.

    Parameters
    ----------
    instance : Instance
        What was served.
    policy : str
        Name of the policy.
    seed : int
        Of the simulation.
    schedule : Schedule
        Every batch. Admitted are those that were promised to be on time at the end: who is demoted is not among them.
    end_s : float
        When the last batch ended.
    cut : bool
        Whether the run was stopped early because too many requests were lost.
    num_preemptions, num_demotions : int
        How often KV was dropped; how many requests became best effort.
    finished, on_time : (N,) bool arrays
        Per request, as the simulator saw it: all tokens produced; all in time and under an SLO. `evaluation` recounts.
    rejected : tuple of int
        Requests that were sent away, by the policy or because the engine can never hold them.
    num_running, num_waiting : (B,) int arrays
        Requests that hold KV blocks, and those that wait, while each batch runs.
    gaps_s : mapping of str to (M,) float array
        Times between tokens, seconds, by SLO class of the request.
    decision_s : (B,) float array
        Wall-clock seconds of each decision of the policy: a measurement, which differs from run to run.
    """

    instance: Instance
    policy: str
    seed: int
    schedule: Schedule
    end_s: float
    cut: bool
    num_preemptions: int
    num_demotions: int
    finished: NDArray[np.bool_]
    on_time: NDArray[np.bool_]
    rejected: tuple[int, ...]
    num_running: NDArray[np.int64]
    num_waiting: NDArray[np.int64]
    gaps_s: dict[str, NDArray[np.float64]]
    decision_s: NDArray[np.float64]

    @property
    def replica_s(self) -> float:
        """Seconds of the replica, from the first arrival to the end of the run or the last arrival."""
        requests = self.instance.requests
        return max(self.end_s, requests[-1].arrival_s) - requests[0].arrival_s

    @property
    def kv_blocks(self) -> int:
        """KV blocks that there are."""
        return self.instance.engine.kv_blocks

    @cached_property
    def evaluation(self) -> Evaluation:
        """The schedule as the independent checker scores it."""
        return evaluate(self.instance, self.schedule)
