"""The rows of a table of SLO classes, however many there are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ROWS = 24


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One SLO class, or several of one family.

    Parameters
    ----------
    name, ttft, tpot : str
        As shown.
    offered, admitted, attained : int
        Requests.
    """

    name: str
    ttft: str
    tpot: str
    offered: int
    admitted: int
    attained: int


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[ClassRow]:
    """A row for each class; for each family, the first word of the names, where the classes are more than 24.

    Traces of a live engine have as many classes as they have limits: a TTFT limit in multiples of the prompt's own time
    is another one in each request.

    Parameters
    ----------
    classes : sequence of mapping
        The ``classes`` of a solve document.
    """
    if len(classes) <= MAX_ROWS:
        return [_row(row["name"], [row]) for row in classes]
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in classes:
        families.setdefault(row["name"].split(" ")[0], []).append(row)
    return [
        _row(rows[0]["name"] if len(rows) == 1 else f"{family} ({len(rows)} limits)", rows)
        for family, rows in families.items()
    ]


def _row(name: str, rows: Sequence[Mapping[str, Any]]) -> ClassRow:
    limits = [row["limits"] for row in rows]
    ttft = [
        part
        for field, unit in (("ttft_ms", " ms"), ("ttft_slowdown", "x"))
        if (part := _range((each[field] for each in limits if field in each), unit))
    ]
    tpot = _range((each["tpot_ms"] for each in limits), " ms")
    counts = [sum(row[key] for row in rows) for key in ("offered", "admitted", "attained")]
    return ClassRow(name, ", ".join(ttft), tpot, *counts)


def _range(values: Iterable[float], unit: str) -> str:
    found = sorted(set(values))
    if not found:
        return ""
    low, high = f"{found[0]:g}", f"{found[-1]:g}"
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"
