"""Helpers of the other folders."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
for folder in ("domain", "simulate"):
    sys.path.insert(0, str(TESTS / folder))
