"""A policy that fails whenever a request of the class `poison` is about."""

from slo_opt.policies.slo_opt import SloOptPolicy


class FailingPolicy(SloOptPolicy):
    def decide(self, snapshot):
        if any(job.slo == "poison" for job in (*snapshot.running, *snapshot.waiting)):
            raise RuntimeError("poisoned")
        return super().decide(snapshot)
