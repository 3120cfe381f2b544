"""What a scheduler sees at one moment: decodes in flight, and requests whose prefill is not complete."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decoding:
    """A running decode, which stays admitted.

    Parameters
    ----------
    id : str
        The request.
    tpot_s : float
        Its tier.
    context_tokens : int
        Tokens in its KV cache.
    remaining_tokens : int or None
        Output tokens it is expected to produce yet; None if unknown: it never departs inside the plan.
    """

    id: str
    tpot_s: float
    context_tokens: int
    remaining_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request with prompt left to prefill.

    Parameters
    ----------
    id : str
        The request.
    due_s : float
        Absolute deadline of its first token, on the clock of `AdmissionSnapshot.now_s`.
    tpot_s : float
        Tier of the decode that follows.
    prefill_tokens : int
        Prompt tokens left to compute (>= 1).
    past_tokens : int
        Tokens already in its KV cache.
    output_tokens : int
        Expected output, for the KV blocks at its peak.
    value : float
        Value of attaining it.
    mandatory : bool
        Admitted before: the plan must keep it.
    """

    id: str
    due_s: float
    tpot_s: float
    prefill_tokens: int
    past_tokens: int = 0
    output_tokens: int = 1
    value: float = 1.0
    mandatory: bool = False


@dataclass(frozen=True, slots=True)
class AdmissionSnapshot:
    """State of one replica.

    Parameters
    ----------
    now_s : float
        The moment of decision.
    decoding : tuple of Decoding
        Running decodes.
    candidates : tuple of Candidate
        Queue and running prefills, in any order.
    """

    now_s: float
    decoding: tuple[Decoding, ...]
    candidates: tuple[Candidate, ...]
