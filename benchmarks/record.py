"""Keep what a benchmark found: as data, and as the table that `fill_results.py` puts into RESULTS.md."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, document: Any, table: str) -> None:
    """Write ``NAME.json`` and ``NAME.md``; nothing for an empty name.

    Parameters
    ----------
    name : str
        Of the results.
    document : JSON types
        All figures.
    table : str
        Markdown.
    """
    if not name:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
