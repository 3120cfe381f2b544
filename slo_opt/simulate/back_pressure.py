"""Chiron's rule for the size of a fleet: the pressure of tokens that come too slowly, and of queues past their time."""

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.interface import Job
from slo_opt.routing.interface import ReplicaView
from slo_opt.simulate.autoscale import FleetState, ScalingDecision, Served


class BackPressure:
    """Start where replicas are pressed or groups would wait too long, drain where the rest could take the load.

    The pressure of a replica is the larger of two shares: the time between tokens over the tightest TPOT that runs
    there, and, once it is busy all the time, its throughput of the interval before over that of this one. Above 1 it
    has more than it can serve: time between tokens is too long, or more requests make fewer tokens. Waiting requests of
    one SLO class are a group; its wait is the tokens that wait before its end over the throughput of the fleet.

    Parameters
    ----------
    high : float
        A replica is started when the mean pressure is above this.
    low : float
        One is drained when the mean pressure, spread over one replica fewer, stays below this.

    Raises
    ------
    InvalidInputError
        Not ``0 <= low < high``.

    Notes
    -----
    Chosen here: the mean duration of a batch stands for the time between tokens; one replica for each group that would
    wait past the first of its deadlines; the replica with the fewest requests is drained. Chiron's batch sizes, its
    second level of control, are the business of the allocation policy.

    References
    ----------
    Chiron, arXiv 2501.08090, sections on local and global back-pressure.
    """

    name = "back-pressure"

    def __init__(self, high: float = 1.0, low: float = 0.7) -> None:
        if not 0 <= low < high:
            raise InvalidInputError(f"back-pressure: low {low}, high {high}; expected 0 <= low < high")
        self._high = high
        self._low = low
        self._tokens_per_s: dict[str, float] = {}
        self._asked_s = 0.0

    def scale(self, state: FleetState) -> ScalingDecision:
        """Start, drain, or neither."""
        interval_s, self._asked_s = state.now_s - self._asked_s, state.now_s
        speeds = {id: served.num_tokens / interval_s for id, served in state.served.items()} if interval_s > 0 else {}
        pressures = [self._pressure(view, state.served[view.id], speeds, interval_s) for view in state.replicas]
        self._tokens_per_s = speeds
        late = self._late_groups(state, sum(speeds.values()))
        total = sum(pressures)
        wanted = max(late, int(total > self._high * len(pressures))) - state.num_starting
        if wanted > 0:
            return ScalingDecision(start=wanted)
        fewer = len(state.replicas) - 1
        if fewer < 1 or late or state.num_starting or total >= self._low * fewer:
            return ScalingDecision()
        return ScalingDecision(drain=(min(state.replicas, key=lambda view: view.num_requests).id,))

    def _pressure(self, view: ReplicaView, served: Served, speeds: dict[str, float], interval_s: float) -> float:
        tpots_s = [job.tpot_s for job in view.running if job.decoding and job.value > 0]
        if not served.num_batches or not tpots_s:
            return 0.0
        pressure = served.busy_s / served.num_batches / min(tpots_s)
        before, now = self._tokens_per_s.get(view.id), speeds.get(view.id)
        if before and now and served.busy_s >= 0.99 * interval_s:
            pressure = max(pressure, before / now)
        return pressure

    def _late_groups(self, state: FleetState, tokens_per_s: float) -> int:
        """Groups of waiting requests that would get their first tokens too late."""
        waiting = [*state.held, *(job for view in state.replicas for job in view.waiting)]
        groups: dict[str, list[Job]] = {}
        for job in waiting:
            if job.value > 0:
                groups.setdefault(job.slo, []).append(job)
        late, ahead = 0, 0
        for group in sorted(groups.values(), key=lambda group: min(job.due_s for job in group)):
            ahead += sum(job.left_tokens for job in group)
            wait_s = ahead / tokens_per_s if tokens_per_s else 0.0
            late += state.now_s + wait_s > min(job.due_s for job in group)
        return late
