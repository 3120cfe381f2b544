"""Level 3 bound >= level 1 optimum >= every schedule: a seeded part of ``benchmarks/sandwich.py``."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from sandwich import compare, summary

SEEDS = range(20_000, 20_010)


@pytest.fixture(scope="module")
def rows():
    return [compare(seed, ("highs", "dp", "search"), search_s=2.0) for seed in SEEDS]


def test_no_exception(rows):
    assert [row["exceptions"] for row in rows] == [[]] * len(rows)


def test_the_comparison_has_two_sides(rows):
    """Bounds and schedules came back everywhere, and something was lost somewhere."""
    total = summary(rows, ("highs", "dp", "search"))
    assert total["certified"] == len(rows)
    assert total["methods"]["highs"]["bound_over_optimum"] >= 1
    for name in ("dp", "search"):
        assert 0.5 < total["methods"][name]["value_over_optimum"] <= 1
    assert total["optimum"] < total["offered"]
