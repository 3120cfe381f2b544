"""Options of the whole suite."""

import pytest
from hypothesis import HealthCheck, settings

# Drawing is slow on a machine that does something else as well: no reason to fail.
settings.register_profile("any-machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("any-machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--solvers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance suite for this admission solver only; may be given several times",
    )
