"""slo-opt's policy with a fault: it fails once a minute."""

import time

from slo_opt.policies.interface import Allocation, EngineSnapshot
from slo_opt.policies.slo_opt import SloOptPolicy

EVERY_S = 60.0
_next_s = time.monotonic() + EVERY_S  # of the process: policies are replaced when they fail or batch times have changed


class SoakPolicy(SloOptPolicy):
    """Raises at the first decision of each minute but the first."""

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch, or an exception."""
        global _next_s
        if time.monotonic() >= _next_s:
            _next_s = time.monotonic() + EVERY_S
            raise RuntimeError("the fault of the minute")
        return super().decide(snapshot)
