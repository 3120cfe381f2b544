"""Models that vLLM serves without a download. Where vLLM is absent, tests that ask for one are skipped."""

import pytest
from needs_vllm import require_vllm

from slo_opt.engine_bridge.small_model import SmallModel, write_small_model


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
