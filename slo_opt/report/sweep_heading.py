"""The lines below the title of a sweep: what was measured, how the engine differs from its model, what is missing."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text


def sweep_heading(text: Text, facts: list[str], document: Mapping[str, Any]) -> Text:
    """The heading of `capacity` and `gap`, from its title and the facts that only one of them has.

    Parameters
    ----------
    text : Text
        The title; the lines are added to it.
    facts : list of str
        Facts that come first.
    document : mapping
        Its ``simulation`` and ``complete`` are read.
    """
    simulation = document["simulation"]
    facts = list(facts)
    if simulation["acceptance"]:
        facts.append(f"drafts accepted {simulation['acceptance']:g}")
    if simulation["noise"]:
        facts.append(f"noise {simulation['noise']:g}")
    if simulation["slowdown"] != 1:
        facts.append(f"{simulation['slowdown']:g}x slower than the model")
    text.append("\n" + " · ".join(facts), style="not bold dim")
    if not document["complete"]:
        text.append("\nnot complete: interrupted", style="not bold red")
    return text
