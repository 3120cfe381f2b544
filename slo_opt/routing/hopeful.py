"""Whether waiting at the router can still do a request good."""

import math
from collections.abc import Sequence

from slo_opt.policies.admission import least_prefill_s
from slo_opt.policies.interface import Job
from slo_opt.routing.interface import Placement, ReplicaView


def latest_start_s(job: Job, replicas: Sequence[ReplicaView]) -> float:
    """When an idle replica has to begin at the latest for the job's next token to be on time; -inf if it missed one."""
    if job.missed:
        return -math.inf
    return job.due_s - min([_least_s(job, view) for view in replicas])


def _least_s(job: Job, view: ReplicaView) -> float:
    if job.decoding:
        return view.engine.batch_time_s(1, decode_context_tokens=job.computed_tokens, num_requests=1)
    return least_prefill_s(job, view.engine)


def hold(now_s: float, retry_s: float, latest_s: float) -> Placement | None:
    """Keep a request at the router until it is time to ask again; None once it has to begin."""
    wake_s = min(now_s + retry_s, latest_s)
    return Placement(None, wake_s=wake_s) if wake_s > now_s else None


def fewest_requests(replicas: Sequence[ReplicaView]) -> ReplicaView:
    """The replica with the fewest requests: where best effort is in nobody's way."""
    return min(replicas, key=lambda view: view.num_requests)
