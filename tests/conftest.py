"""Options of the whole suite."""

import signal

import pytest
from hypothesis import HealthCheck, settings

# Drawing is slow on a machine that does something else as well: no reason to fail.
settings.register_profile("any-machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("any-machine")

# A shell that runs the suite in the background has Ctrl-C ignored, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--solvers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance suite for this admission solver only; may be given several times",
    )
