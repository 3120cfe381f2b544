"""PolyServe's rule for the size of a fleet: the load gradient empties the last server, which is then released."""

from slo_opt.domain.errors import InvalidInputError
from slo_opt.simulate.autoscale import FleetState, ScalingDecision


class LoadGradient:
    """One idle replica in reserve: more when it is taken or requests are held back, fewer when others are idle too.

    A router that prefers the most loaded replica that can still attain a request keeps the load sloped over the fleet:
    when traffic falls, the least loaded replica runs empty first.

    Parameters
    ----------
    spare : int
        Idle replicas in reserve.
    patience_s : float
        An idle replica is released when more than `spare` have been idle for so long.

    Raises
    ------
    InvalidInputError
        A figure is negative.

    Notes
    -----
    Chosen here: one replica for each request that is held back, less those that start already; a patience, without
    which a gap between two arrivals costs a start-up.

    References
    ----------
    PolyServe, arXiv 2507.17769, sections on the load gradient and on auto-scaling.
    """

    name = "load-gradient"

    def __init__(self, spare: int = 1, patience_s: float = 10.0) -> None:
        if spare < 0 or not patience_s >= 0:
            raise InvalidInputError(f"load-gradient: spare {spare}, patience_s {patience_s}; expected both >= 0")
        self._spare = spare
        self._patience_s = patience_s
        self._idle_since_s: dict[str, float] = {}

    def scale(self, state: FleetState) -> ScalingDecision:
        """Start, drain, or neither."""
        idle = [view.id for view in state.replicas if view.idle]
        self._idle_since_s = {id: self._idle_since_s.get(id, state.now_s) for id in idle}
        wanted = len(state.held) + max(0, self._spare - len(idle)) - state.num_starting
        if wanted > 0:
            return ScalingDecision(start=wanted)
        if state.held:
            return ScalingDecision()
        patient = [id for id in idle if state.now_s - self._idle_since_s[id] >= self._patience_s]
        surplus = len(idle) - self._spare
        return ScalingDecision(drain=tuple(patient[-surplus:]) if surplus > 0 else ())
