"""What a value of the configuration must be like, and the error that names the one that is not."""

import re
from collections.abc import Iterable
from dataclasses import fields
from types import UnionType
from typing import Any, NoReturn, get_args

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.shown import shown
from slo_opt.traces.nearest import did_you_mean

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KINDS: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


class ConfigError(InvalidInputError):
    """A configuration that cannot be used.

    Parameters
    ----------
    path : str
        The file, or ``<configuration>`` for one made in Python.
    key : str
        Where in it, with dots (``classes.chat.tpot_ms``), or ``file``.
    problem : str
        What was found and what was expected.
    remedy : str
        How to mend it.
    """

    def __init__(self, path: str, key: str, problem: str, remedy: str) -> None:
        self.path = path
        self.key = key
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {key}: {problem}. {remedy}")


def check_keys(where: str, given: Iterable[str], known: list[str]) -> None:
    """Refuse a key that is not among the known ones; the nearest is suggested.

    Raises
    ------
    ConfigError
        See above.
    """
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            refuse(joined(where, key), "is no key that slo-opt knows", f"{hint}Known: {', '.join(known)}.")


def check_kinds(item: Any, where: str) -> None:
    """Refuse a value of a dataclass whose type is not the annotated one: no true for 1, no number as text.

    Parameters
    ----------
    item : dataclass
        Only its fields of a plain type, or of one or None, are looked at.
    where : str
        Table that it stands in; empty for the top of the file.

    Raises
    ------
    ConfigError
        See above.
    """
    for spec in fields(item):
        value = getattr(item, spec.name)
        kind = _kind_of(spec.type)
        if kind is None or (value is None and spec.default is None):
            continue
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            refuse(
                joined(where, "policy.name" if spec.name == "policy" else spec.name),
                f"is {shown(value)}; expected {_KINDS[kind]}",
                "Change it, or leave the key out.",
            )


def _kind_of(annotation: Any) -> type | None:
    """The plain type of an annotation such as ``float | None``; None for a mapping, a path or a choice."""
    plain = get_args(annotation)[0] if isinstance(annotation, UnionType) else annotation
    return plain if plain in _KINDS else None


def check_range(where: str, key: str, value: float | None, above: float, most: float, unit: str) -> None:
    """Refuse a number that is not in ``(above, most]``; None passes.

    Raises
    ------
    ConfigError
        See above.
    """
    if value is not None and not above < value <= most:  # NaN fails too
        refuse(joined(where, key), f"is {shown(value)}; expected {unit} in ({above:g}, {most:g}]", "Change it.")


def joined(where: str, key: object) -> str:
    """A key with the table that it stands in; in quotes where it is no plain word."""
    plain = isinstance(key, str) and _PLAIN_KEY.fullmatch(key)
    name = str(key) if plain else shown(key)
    return f"{where}.{name}" if where else name


def refuse(key: str, problem: str, remedy: str) -> NoReturn:
    """Raise `ConfigError`; whoever reads a file puts its path there."""
    raise ConfigError("<configuration>", key, problem, remedy)
