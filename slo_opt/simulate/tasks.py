"""Units of a sweep: independent, described by plain data, run anywhere."""

import hashlib
import importlib
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from slo_opt.domain.errors import SloOptError


@dataclass(frozen=True, slots=True)
class Task:
    """One unit.

    Parameters
    ----------
    call : str
        ``module:function``; it takes the inputs and gives back a result, both plain JSON objects.
    inputs : dict
        Everything that the result depends on.
    label : str
        For people.
    where : dict
        What the function needs besides, and the result does not depend on: the place of a file, its content being in
        `inputs` as a hash.
    """

    call: str
    inputs: dict[str, Any]
    label: str
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of the function's name, all inputs and the version of the package."""
        content = [self.call, self.inputs, version("slo-opt")]
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception on its way between processes, where its class may not survive pickling."""

    module: str
    name: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """What can be told of it."""
        return cls(type(error).__module__, type(error).__qualname__, str(error))

    def exception(self) -> Exception:
        """The error as it was, if it is one of this package's; otherwise one that names it."""
        kind = getattr(importlib.import_module(self.module), self.name, None) if "slo_opt" in self.module else None
        if isinstance(kind, type) and issubclass(kind, SloOptError):
            error = kind.__new__(kind)
            error.args = (self.message,)
            return error
        return RuntimeError(f"{self.name}: {self.message}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task came to: a result and the seconds that it took, or a failure."""

    result: dict[str, Any] | None
    wall_s: float
    failure: Failure | None = None


def perform(task: Task) -> Outcome:
    """Run a task in this process. Errors are outcomes, interrupts are not."""
    began_s = time.perf_counter()
    try:
        module, _, name = task.call.partition(":")
        result = getattr(importlib.import_module(module), name)(task.inputs, **task.where)
    except Exception as error:  # told to whoever asked, in another process perhaps
        return Outcome(None, time.perf_counter() - began_s, Failure.of(error))
    return Outcome(result, time.perf_counter() - began_s)
