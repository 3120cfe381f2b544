"""What the operator of a router chooses: its replicas and its limits."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.shown import shown

_DEFAULT_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "for example http://127.0.0.1:8001"


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """Limits and intervals of a router; every one has a default.

    Parameters
    ----------
    max_body_bytes : int
        A longer request is answered 413.
    max_concurrency : int
        Requests in the router at once; further ones are answered 503.
    read_timeout_s : float
        For the head of a request, and again for its body: 408 after it.
    connect_timeout_s : float
        For a connection to a replica.
    idle_timeout_s : float
        Without a byte from the replica, or without the client taking one.
    total_timeout_s : float
        For a request at one replica.
    max_hold_s : float
        How long a request may be held back before it is answered 503.
    max_failures : int
        Replicas that may fail under one request before it is given up: it may be what makes them fail.
    probe_interval_s, probe_timeout_s : float
        Between two looks at a replica, and for one of them.
    probe_failures : int
        Looks without an answer after which a replica counts as cut off.
    keep_alive_s : float
        An idle connection of a client is closed after it.
    drain_s : float
        What is under way may go on for so long after SIGTERM.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    max_body_bytes: int = 32 << 20
    max_concurrency: int = 1024
    read_timeout_s: float = 15.0
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 600.0
    total_timeout_s: float = 3600.0
    max_hold_s: float = 60.0
    max_failures: int = 3
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 5.0
    probe_failures: int = 3
    keep_alive_s: float = 75.0
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        for name, most in (
            ("max_body_bytes", 1 << 32),
            ("max_concurrency", 1_000_000),
            ("max_failures", 1_000),
            ("probe_failures", 1_000),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; expected an integer in [1, {most}]")
        for name in self.__slots__:
            value = getattr(self, name)
            least = 0 if name in ("max_hold_s", "drain_s") else 1e-3
            if name.endswith("_s") and not (math.isfinite(value) and least <= value <= 1e6):
                raise InvalidInputError(f"{name} is {value}; expected seconds in [{least:g}, 1e6]")


def replica_urls(texts: Iterable[str]) -> tuple[str, ...]:
    """Addresses of replicas, as people write them, without ``/v1`` and each once.

    Raises
    ------
    InvalidInputError
        One of them is no http address, holds a user name, a query or a fragment, or is there twice; or there is none.
    """
    found: dict[str, str] = {}
    for text in texts:
        url = replica_url(text)
        if url in found:
            also = "" if found[url] == text else f", also written {shown(found[url])}"
            raise InvalidInputError(f"--replica {shown(text)} is given twice{also}; name each replica once")
        found[url] = text
    if not found:
        raise InvalidInputError(f"no replica is given; name each with --replica URL, {_EXAMPLE}")
    return tuple(found)


def replica_url(text: str) -> str:
    """One address in its plain form: lower case, no default port, no ``/v1``, no slash at its end.

    Raises
    ------
    InvalidInputError
        See `replica_urls`.
    """
    if not text.isascii() or any(character <= " " or character in '\\"<>^`{|}\x7f' for character in text):
        raise _refused(text, f"holds a character that no address has; expected a plain http address, {_EXAMPLE}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(text, f"is no address ({error}); expected one, {_EXAMPLE}") from None
    if parts.scheme not in _DEFAULT_PORTS or not host or port == 0:
        raise _refused(text, f"is no http address; expected one, {_EXAMPLE}")
    if parts.username is not None or parts.password is not None:
        raise _refused("...@" + parts.netloc.rpartition("@")[2], "holds a user name; clients bring their own keys")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise _refused(text, "has a query or a fragment; leave out what follows the path")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if any(segment in ("", ".", "..") for segment in path.split("/")[1:]):
        raise _refused(text, "has an empty or a dot segment in its path; write the path plainly")
    name = f"[{host}]" if ":" in host else host
    shown_port = "" if port is None or port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{name}{shown_port}{path}"


def _refused(text: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"--replica {shown(text)} {problem}")
