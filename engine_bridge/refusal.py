"""How a refusal travels from the scheduler to the client: as the stop reason of an aborted request.

vLLM's server shows a streaming client nothing of a request that is aborted before its first token, and none of its
response formats has room for a status. So the API process watches what its engine client yields.
"""

import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import wraps
from typing import Any

REFUSED = "slo-opt: refused"
_RETRY_AFTER = re.compile(r"retry after (\d{1,9}) s$")
_MARK = "watched_by_slo_opt"


def refusal_text(why: str, retry_after_s: float) -> str:
    """The stop reason of a request that is refused.

    Parameters
    ----------
    why : str
        In a few words.
    retry_after_s : float
        When to try again; written in whole seconds, at least 1.
    """
    return f"{REFUSED}: {why}; retry after {max(1, math.ceil(retry_after_s))} s"


def is_refusal(stop_reason: object) -> bool:
    """Whether a stop reason is a refusal of ours."""
    return isinstance(stop_reason, str) and stop_reason.startswith(REFUSED)


def retry_after_of(text: str, otherwise_s: int) -> int:
    """Seconds that a refusal names; `otherwise_s` where it names none."""
    found = _RETRY_AFTER.search(text)
    return max(1, int(found[1])) if found else otherwise_s


class Outcome:
    """What has become of the generations that one HTTP request started.

    Attributes
    ----------
    begun : bool
        A generation gave a token, ended otherwise than by a refusal, or failed: the response is to pass.
    refusal : str or None
        Stop reason of a generation that was refused.
    """

    __slots__ = ("begun", "refusal")

    def __init__(self) -> None:
        self.begun = False
        self.refusal: str | None = None

    def see(self, result: Any) -> None:
        """Look at one result of the engine (vLLM's ``RequestOutput``)."""
        for output in result.outputs:
            if not output.token_ids and is_refusal(output.stop_reason):
                self.refusal = output.stop_reason
            elif output.token_ids or output.finish_reason is not None:
                self.begun = True

    async def follow(self, results: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The results as they come, each looked at first."""
        try:
            async with aclosing(results):
                async for result in results:
                    if not self.begun:
                        self.see(result)
                    yield result
        except Exception:
            self.begun = True
            raise


current_outcome: ContextVar[Outcome | None] = ContextVar("slo_opt_outcome", default=None)


def watch(engine_client: Any) -> bool:
    """Let every generation of this engine client tell `current_outcome` what becomes of it. Idempotent.

    Returns
    -------
    bool
        False where the client is none that can be watched.
    """
    generate: Callable[..., AsyncGenerator[Any, None]] | None = getattr(engine_client, "generate", None)
    if not callable(generate):
        return False
    if getattr(generate, _MARK, False):
        return True

    @wraps(generate)
    def watched(*args: Any, **keywords: Any) -> AsyncGenerator[Any, None]:
        results = generate(*args, **keywords)
        outcome = current_outcome.get()
        return results if outcome is None else outcome.follow(results)

    setattr(watched, _MARK, True)
    try:
        engine_client.generate = watched
    except AttributeError:
        return False
    return True
