"""Which solver versions are safe to use, judged from the installed metadata alone: nothing is imported.

One place, with the reason beside each rule. Backends call `require`; ``slo-opt doctor`` prints `check_versions`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from slo_opt.domain.errors import SolverNotAvailableError

Installed = Callable[[str], str | None]
Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One library: what is there, what is wanted.

    Parameters
    ----------
    name : str
        Distribution.
    installed : str or None
        Its version; None if it is not installed.
    required : str
        Versions in use, as in pyproject.toml.
    ok : bool
        Whether it can be used.
    reason : str
        Why not, and what to do; empty if it can.
    """

    name: str
    installed: str | None
    required: str
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Rule:
    required: str
    least: Release
    below: Release
    extra: str | None  # None: part of the base installation
    why: str


_RULES = {
    "highspy": _Rule(
        ">=1.13.1,<1.14",
        (1, 13, 1),
        (1, 14),
        None,
        "1.14.0 returns wrong MIP optima (min 2x + 3z, x + z >= 4.5, z integer gives 15 instead of 9), and 1.15 and "
        "later cannot be loaded in one process with OR-Tools 9.15 (google/or-tools issue 5246)",
    ),
    "ortools": _Rule(
        ">=9.15,<9.16",
        (9, 15),
        (9, 16),
        "exact",
        "OR-Tools and highspy ship the same library name; this pair is tested together (google/or-tools issue 5246)",
    ),
    "pyomo": _Rule(">=6.10,<7", (6, 10), (7,), "exact", "the HiGHS interface of Pyomo changed its name before 6.10"),
    "cvxpy": _Rule(">=1.9,<1.9.2", (1, 9), (1, 9, 2), "exact", "1.9.2 and later demand highspy >= 1.14"),
}


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_versions(installed: Installed = installed_version) -> list[VersionRow]:
    """All solver libraries, installed or not.

    Parameters
    ----------
    installed : callable
        Distribution name to version or None.
    """
    return [_judge(name, rule, installed(name)) for name, rule in _RULES.items()]


def require(*names: str, installed: Installed = installed_version) -> dict[str, str]:
    """Refuse libraries that are missing or known to give wrong answers.

    Parameters
    ----------
    *names : str
        Distributions that a backend is about to import.
    installed : callable
        Distribution name to version or None.

    Returns
    -------
    dict of str to str
        Name to version.

    Raises
    ------
    SolverNotAvailableError
        One of them cannot be used; the message says why and what to install.
    """
    found: dict[str, str] = {}
    for name in names:
        row = _judge(name, _RULES[name], installed(name))
        if not row.ok or row.installed is None:
            raise SolverNotAvailableError(f"{name} {row.installed or '(not installed)'}: {row.reason}")
        found[name] = row.installed
    return found


def forbidden(rows: list[VersionRow]) -> Mapping[str, str]:
    """Installed libraries that must not be used, with the reason; one that is missing is not among them."""
    return {row.name: row.reason for row in rows if not row.ok and row.installed is not None}


def _judge(name: str, rule: _Rule, found: str | None) -> VersionRow:
    remedy = f"pip install 'slo-opt[{rule.extra}]'" if rule.extra else "pip install slo-opt"
    if found is None:
        return VersionRow(name, None, rule.required, False, f"not installed; {remedy}")
    if rule.least <= release(found) < rule.below:
        return VersionRow(name, found, rule.required, True, "")
    reason = f"expected {rule.required}: {rule.why}; {remedy} installs one that works"
    return VersionRow(name, found, rule.required, False, reason)


def release(text: str) -> Release:
    """Leading numbers of a version: ``"1.13.1.post2"`` gives ``(1, 13, 1)``."""
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
