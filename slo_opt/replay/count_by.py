"""How the tokens of a stream are told."""

from enum import StrEnum


class CountBy(StrEnum):
    """How the tokens of a stream are told.

    Attributes
    ----------
    TOKEN_IDS
        The server is asked to send the ids of its tokens (``return_token_ids``, a field of vLLM): exact.
    USAGE
        It is asked for its count with each event (``continuous_usage_stats``): exact too, but later rounds cannot
        repeat what was said.
    CHUNKS
        Nothing is asked for; an event with text is one token, and the count at the end says how many were missed.
    """

    TOKEN_IDS = "token-ids"
    USAGE = "usage"
    CHUNKS = "chunks"
