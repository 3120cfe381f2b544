"""Units of work for the tests of the pool, importable in worker processes."""

import os
from typing import Any

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.policies.interface import Allocation, EngineSnapshot
from slo_opt.policies.registry import PolicyContext


def square(inputs: dict[str, Any], log: str | None = None) -> dict[str, Any]:
    """The square of a number; each call leaves a line in the log."""
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{inputs['number']}\n")
    return {"square": inputs["number"] ** 2, "process": os.getpid()}


def refuse(inputs: dict[str, Any]) -> dict[str, Any]:
    """Bad input, of a class whose constructor takes other arguments than its message."""
    raise TraceFormatError("trace.json", "line 7", "is odd", "Mend it.")


def refuse_odd(inputs: dict[str, Any], log: str | None = None) -> dict[str, Any]:
    """Even numbers only."""
    if inputs["number"] % 2:
        raise InvalidInputError(f"{inputs['number']} is odd")
    return square(inputs, log)


def crash(inputs: dict[str, Any]) -> dict[str, Any]:
    """Die without a word."""
    os._exit(9)


def break_down(inputs: dict[str, Any]) -> dict[str, Any]:
    """A defect."""
    return {"share": 1 / 0}


class RejectAll:
    """A policy that attains nothing, by leave of the engine."""

    name = "reject-all"

    def __init__(self, context: PolicyContext) -> None:
        """Needs nothing."""

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """Everybody leaves."""
        return Allocation(rejected=list(snapshot.waiting), wake_s=snapshot.now_s + 1.0)
