"""Whether a run shows that a rate is sustained: enough attained, also at the end, and nothing left over."""

import math
from dataclasses import dataclass

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.simulate.metrics import IllegalRunError
from slo_opt.simulate.run import Run

LATE_SHARE = 0.25  # of the arrivals
_Z = 1.645  # one-sided 95 %


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run shows about its rate.

    Parameters
    ----------
    passed : bool
        Every one of the conditions of `judge` holds.
    offered : int
        Requests under an SLO.
    attained, late_attained : int or None
        Of those; of the last quarter of them by arrival. None where the run was cut: it proved a failure.
    reason : str
        ``ok``, or the condition that fails: ``attainment``, ``late-arrivals``, ``left-over``.
    """

    passed: bool
    offered: int
    attained: int | None
    late_attained: int | None
    reason: str


def needed(offered: int, target: float) -> int:
    """Requests that have to be attained.

    Raises
    ------
    InvalidInputError
        The target is no share, or no request is under an SLO.
    """
    if not 0 < target <= 1:
        raise InvalidInputError(f"target is {target}; expected a share of the offered requests in (0, 1]")
    if not offered:
        raise InvalidInputError("no request is under an SLO: attainment means nothing; leave best effort out")
    return math.ceil(target * offered - 1e-9)


def max_lost(instance: Instance, target: float) -> int:
    """Requests that may be lost: a run that loses more can be stopped."""
    offered = sum(instance.value_of(request) > 0 for request in instance.requests)
    return offered - needed(offered, target)


def judge(run: Run, target: float) -> Verdict:
    """Whether the run sustained its rate, as the simulator counted it; `confirmed` has the checker count again.

    1. At least `target` of the offered requests are attained; rejected and demoted ones are offered, too.
    2. So it is for the last quarter of the arrivals, within sampling error: at least ``target - 1.645 * sqrt(target *
       (1 - target) / n)`` of those ``n``. Where a queue grows over the run, its end is worse than its beginning, and a
       longer run would fail.
    3. The queue is drained: each request under an SLO got all its tokens in the end, on time or not, or was rejected.
    """
    counted = np.flatnonzero([run.instance.value_of(request) > 0 for request in run.instance.requests])
    if run.cut:
        return Verdict(False, len(counted), None, None, "attainment")
    on_time = run.on_time[counted]
    late = on_time[-math.ceil(LATE_SHARE * len(counted)) :]
    least = target - _Z * math.sqrt(target * (1 - target) / len(late))
    over = run.finished[counted] | np.isin(counted, run.rejected)
    if on_time.sum() < needed(len(counted), target):
        reason = "attainment"
    elif late.mean() < least:
        reason = "late-arrivals"
    else:
        reason = "ok" if over.all() else "left-over"
    return Verdict(reason == "ok", len(counted), int(on_time.sum()), int(late.sum()), reason)


def confirmed(run: Run) -> Run:
    """The run, if the independent checker finds its schedule legal and counts the same requests as attained.

    Raises
    ------
    IllegalRunError
        It does not: the simulator is wrong, no figure can be trusted.
    """
    evaluation = run.evaluation
    if not evaluation.legal:
        raise IllegalRunError(f"policy {run.policy!r}: the checker refuses its run: {evaluation.violations[0]}")
    if not np.array_equal(evaluation.attained, run.on_time):
        index = int(np.flatnonzero(evaluation.attained != run.on_time)[0])
        raise IllegalRunError(
            f"policy {run.policy!r}: the checker and the simulator disagree on request "
            f"{run.instance.requests[index].id!r}: attained is {bool(evaluation.attained[index])} for the checker"
        )
    return run
