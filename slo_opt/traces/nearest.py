"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'? `` (with a trailing blank), or an empty string when nothing known resembles `name`."""
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""
