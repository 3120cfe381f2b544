"""Put the tables of benchmarks/results/*.md into benchmarks/RESULTS.md, between their markers.

    python benchmarks/fill_results.py

Run it after a benchmark.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Rewrite the page."""
    page = HERE / "RESULTS.md"

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n\n{(HERE / 'results' / f'{name}.md').read_text().strip()}\n\n<!-- end -->"

    page.write_text(re.sub(r"<!-- (?P<name>\w+) -->.*?<!-- end -->", table, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
