"""Values on the command line that name something."""

import difflib

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import ScoreRule


def score_rule_named(name: str | None) -> ScoreRule | None:
    """The score rule of that name.

    Raises
    ------
    InvalidInputError
        There is none; the message suggests the nearest.
    """
    if name is None:
        return None
    rules = [rule.value for rule in ScoreRule]
    if name not in rules:
        near = difflib.get_close_matches(name, rules, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(f"unknown score rule {name!r}; {hint}Known: {', '.join(rules)}")
    return ScoreRule(name)
