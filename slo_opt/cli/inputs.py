"""Values on the command line that name something, and the trace that they are about."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import ScoreRule
from slo_opt.traces.nearest import did_you_mean

if TYPE_CHECKING:
    from slo_opt.analysis.origin import Origin
    from slo_opt.domain.instance import Instance
    from slo_opt.policies.catalogue import Catalogue


@contextmanager
def about(path: str) -> Iterator[None]:
    """Put the file in front of what is refused of its content."""
    try:
        yield
    except InvalidInputError as error:
        name = "<stdin>" if path == "-" else path
        raise InvalidInputError(f"{name}: {error}") from None


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would change nothing: whoever gives one misunderstands the rest.

    Parameters
    ----------
    context : typer.Context
        Of the command.
    names : iterable of str
        Of its parameters.
    why : str
        When they are of use, and what to do instead.

    Raises
    ------
    typer.BadParameter
        One of them is on the command line.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} is of use {why}")


def comma_list(text: str) -> tuple[str, ...]:
    """The names in a comma list, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def names_in(text: str, catalogue: "Catalogue") -> tuple[str, ...]:
    """Read a comma list of policies, or of routers; the option has the name of the kind.

    Raises
    ------
    InvalidInputError
        It names none, or one that does not exist.
    """
    names = comma_list(text)
    if not names:
        kind = catalogue.kind
        raise InvalidInputError(f"--{kind} {text!r} names no {kind}; known: {', '.join(catalogue.entries)}")
    for name in names:
        catalogue.entry(name)
    return names


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


def parse_window(text: str | None) -> tuple[float, float] | None:
    """Read ``START:END`` in seconds.

    Raises
    ------
    InvalidInputError
        It is anything else.
    """
    if text is None:
        return None
    try:
        start, end = map(float, text.split(":"))
    except ValueError:
        raise InvalidInputError(f"--window {text}: expected START:END in seconds, for example 1786:2086") from None
    if not 0 <= start < end < float("inf"):
        raise InvalidInputError(f"--window {text}: expected 0 <= START < END in seconds, for example 1786:2086")
    return start, end


def read_instance(
    path: str,
    *,
    engine: str | None,
    scenario: str | None,
    input_format: str | None,
    window: tuple[float, float] | None,
    scale: float,
    seed: int,
    score_rule: ScoreRule | None,
    unservable: str,
    num_replicas: int = 1,
    best_effort: float = 0.0,
) -> "tuple[Instance, Origin]":
    """The trace as asked for, on its engine, and where its requests come from.

    Raises
    ------
    InvalidInputError
        See `read_trace`, `Trace.to_instance` and `apply_unservable`.
    """
    from slo_opt.analysis.origin import Origin
    from slo_opt.traces.best_effort import with_best_effort
    from slo_opt.traces.read import read_trace
    from slo_opt.traces.unservable import apply_unservable

    trace = read_trace(
        path, input_format=input_format, scenario=scenario, engine=engine, seed=seed, window=window, scale=scale
    )
    with about(path):
        if best_effort:
            trace = with_best_effort(trace, best_effort, seed)
        whole = trace.to_instance(engine=engine, score_rule=score_rule, num_replicas=num_replicas)
        instance = apply_unservable(whole, unservable)
    provenance = dict(trace.provenance)
    dropped = int(provenance.get("dropped_over_context") or 0) if scenario else 0
    lost = len(whole.requests) - len(instance.requests)
    return instance, Origin(path, scenario, window, scale, len(whole.requests) + dropped, lost + dropped, provenance)
