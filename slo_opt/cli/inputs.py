"""Values on the command line that name something."""

from collections.abc import Iterator
from contextlib import contextmanager

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import ScoreRule
from slo_opt.traces.nearest import did_you_mean


@contextmanager
def about(path: str) -> Iterator[None]:
    """Put the file in front of what is refused of its content."""
    try:
        yield
    except InvalidInputError as error:
        name = "<stdin>" if path == "-" else path
        raise InvalidInputError(f"{name}: {error}") from None


def score_rule_named(name: str | None) -> ScoreRule | None:
    """The score rule of that name; None for None.

    Raises
    ------
    InvalidInputError
        There is none; the message suggests the nearest.
    """
    if name is None:
        return None
    if name not in list(ScoreRule):
        hint = did_you_mean(name, ScoreRule)
        raise InvalidInputError(f"unknown score rule {name!r}. {hint}Known: {', '.join(ScoreRule)}")
    return ScoreRule(name)
