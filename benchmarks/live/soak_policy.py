"""slo-opt's policy with a fault: it fails once a minute."""

from slo_opt.policies.interface import Allocation, EngineSnapshot
from slo_opt.policies.slo_opt import SloOptPolicy

EVERY_S = 60.0


class SoakPolicy(SloOptPolicy):
    """Raises at the first decision of each minute but the first."""

    _next_s = None

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch, or an exception."""
        if self._next_s is None:
            self._next_s = snapshot.now_s + EVERY_S
        if snapshot.now_s >= self._next_s:
            self._next_s = snapshot.now_s + EVERY_S
            raise RuntimeError("the fault of the minute")
        return super().decide(snapshot)
