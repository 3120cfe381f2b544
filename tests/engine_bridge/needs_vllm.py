"""Skips what needs vLLM where it is not installed."""

import importlib.util

import pytest

NEEDS_VLLM = "needs vLLM; `make test-vllm` installs it and runs this"


def require_vllm() -> None:
    """Skip the test where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(NEEDS_VLLM)
