"""What to do with requests that no schedule can attain."""

from enum import StrEnum

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.traces.nearest import did_you_mean


class Unservable(StrEnum):
    """Policy for requests that nothing can attain.

    Attributes
    ----------
    ERROR
        Refuse the instance.
    LOSE
        Keep them: offered, and lost.
    DROP
        Remove them: not offered.
    """

    ERROR = "error"
    LOSE = "lose"
    DROP = "drop"


def unservable_requests(instance: Instance) -> tuple[tuple[Request, str], ...]:
    """Requests that no schedule can attain, each with the reason. Best effort is left out: it is never attained."""
    found = []
    for request in instance.requests:
        if not instance.slo_of(request).best_effort and (reason := instance.unservable_reason(request)) is not None:
            found.append((request, reason))
    return tuple(found)


def apply_unservable(instance: Instance, policy: str | Unservable) -> Instance:
    """The instance under a policy for requests that no schedule can attain.

    Parameters
    ----------
    instance : Instance
        As read.
    policy : Unservable or str
        ``error``, ``lose`` or ``drop``.

    Raises
    ------
    InvalidInputError
        Unknown policy; policy ``error`` and there is such a request; policy ``drop`` and no request is left.
    """
    if policy not in list(Unservable):
        raise InvalidInputError(
            f"unknown policy {policy!r} for unservable requests. {did_you_mean(policy, Unservable)}"
            f"Policies: {', '.join(Unservable)}"
        )
    if policy == Unservable.LOSE:
        return instance
    found = unservable_requests(instance)
    if not found:
        return instance
    if policy == Unservable.ERROR:
        request, reason = found[0]
        raise InvalidInputError(
            f"{instance.name}: request {request.id!r} cannot be served by {instance.engine.name}: {reason} "
            f"({len(found)} of {len(instance.requests)} requests). Use --unservable lose to count them as offered and "
            "lost, or --unservable drop to remove them."
        )
    refused = {request.id for request, _ in found}
    left = tuple(request for request in instance.requests if request.id not in refused)
    if not left:
        raise InvalidInputError(
            f"{instance.name}: {instance.engine.name} can serve none of the {len(found)} requests "
            f"(the first: {found[0][1]}); choose another engine or looser SLOs"
        )
    return instance.with_requests(left)


def check_attainable(instance: Instance) -> None:
    """Refuse an instance whose requests are all beyond any schedule: whatever ran on it would tell nothing.

    Raises
    ------
    InvalidInputError
        There are requests under an SLO and nothing can attain any of them.
    """
    offered = sum(not instance.slo_of(request).best_effort for request in instance.requests)
    found = unservable_requests(instance)
    if found and len(found) == offered:
        request, reason = found[0]
        raise InvalidInputError(
            f"{instance.name}: no schedule on {instance.engine.name} can attain any of the {offered} requests (the "
            f"first, {request.id!r}: {reason}); choose another engine or looser SLOs"
        )
