"""The server under load: its address, its model, and whether it answers at all."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slo_opt.domain.errors import InvalidInputError, SolverNotAvailableError
from slo_opt.replay.token_counter import error_text
from slo_opt.traces.nearest import did_you_mean

if TYPE_CHECKING:
    import aiohttp

_FIRST_ANSWER_S = 30.0


class UnusableServerError(InvalidInputError):
    """The server cannot be reached, is another kind of server, or has no such model."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where calls go.

    Parameters
    ----------
    base_url : str
        Without ``/v1`` and without a slash at its end.
    model : str
        Name for the calls.
    """

    base_url: str
    model: str

    @property
    def completions_url(self) -> str:
        """Address of the completions API."""
        return f"{self.base_url}/v1/completions"


def require_aiohttp() -> None:
    """Raise SolverNotAvailableError where aiohttp is not installed."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise SolverNotAvailableError("replay needs aiohttp; pip install 'slo-opt[live]'") from None


def base_url(url: str) -> str:
    """The address of a server, as people write it, without ``/v1``.

    Raises
    ------
    InvalidInputError
        It is no http address.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment:
        raise InvalidInputError(f"--url {url}: expected the address of a server, for example http://localhost:8000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def authorization(api_key_env: str | None) -> dict[str, str]:
    """The header with the API key from an environment variable; none for None.

    Raises
    ------
    InvalidInputError
        The variable is not set, or holds what no header can.
    """
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise InvalidInputError(f"the environment variable {api_key_env} for the API key is not set; export it first")
    if not (key.isascii() and key.isprintable()):
        raise InvalidInputError(f"the environment variable {api_key_env} holds characters that no API key has")
    return {"Authorization": f"Bearer {key}"}


async def find_server(session: "aiohttp.ClientSession", url: str, model: str | None) -> Server:
    """Ask the server for its models, and settle which one to call.

    Parameters
    ----------
    session : aiohttp.ClientSession
        With the headers of every call.
    url : str
        As given by the user.
    model : str or None
        Wanted; None takes the first that is offered.

    Raises
    ------
    UnusableServerError
        It does not answer, answers no list of models, refuses the key, or does not offer the model.
    """
    base = base_url(url)
    status, document = await _ask(session, base)
    if status in (401, 403):
        raise UnusableServerError(
            f"{base} wants another API key (HTTP {status}); name the environment variable that holds it: --api-key-env"
        )
    if status in (404, 405) and model is not None:
        return Server(base, model)  # not every server lists its models
    offered = _names(document) if status == 200 else None
    if offered is None:
        raise UnusableServerError(
            f"{base}/v1/models answers HTTP {status} and no list of models: is this the address of an "
            "OpenAI-compatible server?"
        )
    if model is None:
        if not offered:
            raise UnusableServerError(f"{base} offers no model; load one, or name it: --model")
        return Server(base, offered[0])
    if model not in offered:
        raise UnusableServerError(
            f"{base} has no model {model!r}. {did_you_mean(model, offered)}Offered: {', '.join(offered) or 'none'}"
        )
    return Server(base, model)


async def _ask(session: "aiohttp.ClientSession", base: str) -> tuple[int, Any]:
    """HTTP status and JSON document of the list of models."""
    import aiohttp

    try:
        wait = aiohttp.ClientTimeout(total=_FIRST_ANSWER_S)
        async with session.get(f"{base}/v1/models", timeout=wait) as response:
            try:
                return response.status, await response.json(content_type=None)
            except ValueError:
                return response.status, None
    except TimeoutError:
        raise UnusableServerError(f"{base} gives no answer within {_FIRST_ANSWER_S:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UnusableServerError(f"{base} cannot be reached: {error_text(error)}. Is the server running?") from None


def _names(document: Any) -> list[str] | None:
    """Names of the models in an answer; None if it is none."""
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        return None
    names = [row.get("id") if isinstance(row, dict) else None for row in rows]
    return [name for name in names if isinstance(name, str)]
