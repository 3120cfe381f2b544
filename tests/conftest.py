"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--solvers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance suite for this admission solver only; may be given several times",
    )
