"""Settings of policies, checked against the keywords of their constructors before anything runs."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, get_args

from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.nearest import did_you_mean

_COUNTS = ("_tokens", "_batches", "_requests", "_blocks")
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}


def check_setting(policy: str, factory: type, setting: Mapping[str, Any]) -> None:
    """Refuse what the constructor of a policy has no keyword for, or that its keyword cannot mean.

    Parameters
    ----------
    policy : str
        Its name, for messages.
    factory : type
        Its class; every parameter after the context is a keyword with a type and a default.
    setting : mapping
        Values by keyword. Numbers must be finite and not negative; where the name counts something (`budget_tokens`),
        at least 1.

    Raises
    ------
    InvalidInputError
        An unknown keyword (the nearest is suggested), a value of another type, or one out of range.
    """
    parameters = _keywords(factory)
    for key, value in setting.items():
        if key not in parameters:
            hint = did_you_mean(key, parameters)
            raise InvalidInputError(
                f"policy {policy!r} has no setting {key!r}. {hint}Known: {', '.join(parameters) or 'none'}"
            )
        kinds = get_args(parameters[key].annotation) or (parameters[key].annotation,)
        if not any(_is_a(value, kind) for kind in kinds):
            expected = " or ".join(_WORDS.get(kind, repr(kind)) for kind in kinds)
            raise InvalidInputError(f"policy {policy!r}: {key} is {value!r}; expected {expected}")
        least = 1 if key.endswith(_COUNTS) else 0
        if isinstance(value, (int, float)) and not least <= value < math.inf and not isinstance(value, bool):
            raise InvalidInputError(f"policy {policy!r}: {key} is {value!r}; expected a number of at least {least}")


def _keywords(factory: type) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(factory, eval_str=True).parameters.items())[1:])


def defaults_of(factory: type) -> dict[str, Any]:
    """Every keyword of a policy with its default."""
    return {key: parameter.default for key, parameter in _keywords(factory).items()}


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(kind, type):
        return bool(value == kind)  # a choice of a Literal
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
