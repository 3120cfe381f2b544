"""The small model: what is refused, and that model and tokenizer fit together."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.small_model import BEGIN, END, SmallModel, write_small_model

tiny = SmallModel(64, 1, num_heads=1, vocabulary_tokens=400, max_model_len=128, dtype="float32")


@given(st.integers(-64, 2048), st.integers(-2, 64))
def test_heads_are_what_attention_kernels_take(hidden, heads):
    fits = heads >= 1 and hidden >= 32 and hidden % heads == 0 and hidden // heads % 32 == 0
    if fits:
        config = SmallModel(hidden, num_heads=heads).config()
        assert config["intermediate_size"] % 64 == 0
        assert config["intermediate_size"] >= 8 * hidden / 3
    else:
        with pytest.raises(InvalidInputError, match=r"num_heads|hidden_size"):
            SmallModel(hidden, num_heads=heads)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("vocabulary_tokens", 299), ("max_model_len", 63), ("dtype", "float8"), ("num_heads", 0)],
)
def test_what_makes_no_model_is_refused_by_name(field, value):
    with pytest.raises(InvalidInputError, match=field):
        SmallModel(**{field: value})


def test_the_command_line_refuses_with_the_code_for_bad_input(tmp_path):
    command = [sys.executable, "-m", "slo_opt.engine_bridge.small_model", str(tmp_path / "model"), "--hidden", "33"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("slo-opt: error: hidden_size is 33")
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="needs tokenizers, which comes with vLLM: `make test-vllm`")
    folder = tmp_path_factory.mktemp("tiny")
    write_small_model(folder, tiny)
    return folder


def test_model_and_tokenizer_know_the_same_tokens(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 400
    assert tokenizer.token_to_id(BEGIN) == config["bos_token_id"]
    assert tokenizer.token_to_id(END) == config["eos_token_id"]


def test_any_text_survives_the_tokenizer(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @settings(deadline=None)
    @given(st.text())
    def survives(text):
        if not any(special in text for special in (BEGIN, END)):
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

    survives()


def test_a_vocabulary_larger_than_the_text_gives_is_refused(tmp_path):
    pytest.importorskip("tokenizers", reason="needs tokenizers, which comes with vLLM: `make test-vllm`")
    with pytest.raises(InvalidInputError, match="vocabulary_tokens is 1000000"):
        write_small_model(tmp_path, SmallModel(vocabulary_tokens=1_000_000))


def test_equal_seeds_give_equal_weights(folder, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, which comes with vLLM: `make test-vllm`")
    from safetensors.torch import load_file

    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_small_model(tmp_path / name, tiny, weights_seed=seed)
        found.append(load_file(tmp_path / name / "model.safetensors"))
    same, again, other = found
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["lm_head.weight"], other["lm_head.weight"])
    assert same["lm_head.weight"].shape == (400, 64)
