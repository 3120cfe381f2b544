"""Models that vLLM serves without a download. Where vLLM is absent, tests that ask for one are skipped."""

import importlib.util

import pytest

from slo_opt.engine_bridge.small_model import SmallModel, write_small_model

NEEDS_VLLM = "needs vLLM; `make test-vllm` installs it and runs this"


def require_vllm() -> None:
    """Skip the test where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(NEEDS_VLLM)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The model of `make serve`, for dummy weights."""
    require_vllm()
    folder = tmp_path_factory.mktemp("small-model")
    write_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def telling_model(tmp_path_factory):
    """A tiny model with random weights in float32: each token depends on all tokens before it."""
    require_vllm()
    folder = tmp_path_factory.mktemp("telling-model")
    shape = SmallModel(128, 2, num_heads=2, vocabulary_tokens=512, max_model_len=1024, dtype="float32")
    write_small_model(folder, shape, weights_seed=1)
    return folder
