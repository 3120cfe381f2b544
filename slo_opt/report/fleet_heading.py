"""The heading of the plots of a fleet plan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slo_opt.report import figure as look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan_heading(figure: "Figure", document: Mapping[str, Any], detail: str) -> None:
    """What was promised; below it the traffic, which may be long, its engines where there are several, and a detail."""
    engines = [engine["name"] for engine in document["engines"]]
    about = [document["name"], *([", ".join(engines)] if len(engines) > 1 else []), detail]
    look.heading(figure, f"Least fleet · {document['promise']['text']} attainment", " · ".join(about))
