"""What is asked of vLLM for one step, and how far the step differed from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class StepPlan:
    """The next batch in vLLM's terms.

    Parameters
    ----------
    tokens : list of (str, int)
        Request id and tokens, in order of service; each request at most once. Prefill: tokens after the prefix-cache
        hit. Decode: 1, or 1 + drafted tokens to verify. Requests left out get nothing in this step.
    preempt : sequence of str
        Running requests whose KV is dropped before the batch. They wait, and get nothing in this step.
    victims : sequence of str
        Running requests outside the batch, the first to be preempted by vLLM coming first, should it run out of KV
        blocks. The others outside the batch come after these (latest arrival first), and the batch itself last.
    """

    tokens: list[tuple[str, int]] = field(default_factory=list)
    preempt: Sequence[str] = ()
    victims: Sequence[str] = ()


DEVIATION_KINDS = ("missing", "fewer", "more", "unplanned", "preempted")


@dataclass(frozen=True, slots=True)
class Deviations:
    """Where vLLM's batch differed from the plan: request ids by kind.

    Parameters
    ----------
    missing : tuple of str
        Planned, not scheduled: no KV block left, a grammar not compiled, a limit on adapters or sequences, gone.
    fewer, more : tuple of str
        Scheduled with fewer or more tokens than planned. A prefill that ended earlier, since the prefix cache held
        more than when the plan was made, counts as `cached` instead.
    unplanned : tuple of str
        Scheduled, not planned.
    preempted : tuple of str
        Preempted by vLLM and not by the plan.
    cached : tuple of str
        Prefills that needed fewer tokens than planned. Not a deviation.
    """

    missing: tuple[str, ...] = ()
    fewer: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in DEVIATION_KINDS)

    def counts(self) -> dict[str, int]:
        """Requests by kind of deviation, those kinds only that occurred."""
        return {kind: len(ids) for kind in DEVIATION_KINDS if (ids := getattr(self, kind))}


NO_DEVIATIONS = Deviations()


def deviations(
    planned: Mapping[str, int],
    scheduled: Mapping[str, int],
    preempted: Sequence[str],
    ended_early: Sequence[str] = (),
) -> Deviations:
    """Compare a batch with its plan.

    Parameters
    ----------
    planned, scheduled : mapping of str to int
        Tokens by request id.
    preempted : sequence of str
        Requests that vLLM preempted of its own.
    ended_early : sequence of str
        Requests whose prefill is complete although they got fewer tokens than planned.
    """
    if not preempted and planned == scheduled:
        return NO_DEVIATIONS
    both = [(name, count, scheduled[name]) for name, count in planned.items() if name in scheduled]
    return Deviations(
        missing=tuple(name for name in planned if name not in scheduled),
        fewer=tuple(name for name, asked, got in both if got < asked and name not in ended_early),
        more=tuple(name for name, asked, got in both if got > asked),
        unplanned=tuple(name for name in scheduled if name not in planned),
        preempted=tuple(preempted),
        cached=tuple(name for name, asked, got in both if got < asked and name in ended_early),
    )
