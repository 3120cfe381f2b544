"""Which headers travel from one connection to the next."""

from collections.abc import Iterable

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Of a request the connection to the replica makes its own, and the body has been read.
OF_A_REQUEST = HOP_BY_HOP | {"host", "content-length", "expect"}

Headers = list[tuple[str, str]]


def end_to_end(headers: Iterable[tuple[str, str]], dropped: frozenset[str] = HOP_BY_HOP) -> Headers:
    """The headers that are for the other end, in their order.

    Left out are those of one connection: the known ones, and whatever ``Connection`` names.

    Parameters
    ----------
    headers : iterable of (str, str)
        Names in any case; a name may occur several times.
    dropped : frozenset of str
        Names in lower case.

    References
    ----------
    RFC 9110, section 7.6.1.
    """
    kept = [(name, value, name.lower()) for name, value in headers]
    named = {
        token.strip(" \t").lower() for _, value, lower in kept if lower == "connection" for token in value.split(",")
    }
    left_out = dropped | named if named else dropped
    return [(name, value) for name, value, lower in kept if lower not in left_out]
