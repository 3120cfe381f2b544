"""Where the tests find trace files."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
EXAMPLES = ROOT / "examples"
MALFORMED = Path(__file__).parent / "malformed"


@pytest.fixture
def data() -> Path:
    """Folder of published traces, which are not part of this repository."""
    if not DATA.is_dir():
        pytest.skip("published traces are not at hand (../shared/data)")
    return DATA
