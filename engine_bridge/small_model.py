"""A small Llama and its tokenizer, made on the spot: vLLM serves them without a download, on a CPU too.

    python -m slo_opt.engine_bridge.small_model DIR [--hidden 512 --layers 8]
    python -m vllm.entrypoints.openai.api_server --model DIR --load-format dummy

What it says is noise. How long it takes is not: prefill and decode cost what they cost on a large model, in proportion.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slo_opt.domain.errors import InvalidInputError

BEGIN, END, ROLE = "<|begin|>", "<|end|>", "<|role|>"
CHAT_TEMPLATE = (
    f"{BEGIN}{{% for message in messages %}}{ROLE}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{ROLE}assistant\n{{% endif %}}"
)


@dataclass(frozen=True, slots=True)
class SmallModel:
    """Shape of the model.

    Parameters
    ----------
    hidden_size, num_layers, num_heads : int
        The width must be a multiple of 32 times the heads: attention kernels want heads of 32, 64, 96 ... values.
    vocabulary_tokens : int
        Tokens known to model and tokenizer alike, 256 bytes and 3 special ones included.
    max_model_len : int
        Longest context, in tokens.
    dtype : str
        ``bfloat16`` or ``float32``.

    Raises
    ------
    InvalidInputError
        A figure is too small, the heads do not divide the width, or the type is another.
    """

    hidden_size: int = 512
    num_layers: int = 8
    num_heads: int = 8
    vocabulary_tokens: int = 2048
    max_model_len: int = 8192
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for field, least in (("num_layers", 1), ("num_heads", 1), ("vocabulary_tokens", 300), ("max_model_len", 64)):
            if getattr(self, field) < least:
                raise InvalidInputError(f"{field} is {getattr(self, field)}; expected at least {least}")
        if self.hidden_size < 32 or self.hidden_size % (32 * self.num_heads):
            raise InvalidInputError(
                f"hidden_size is {self.hidden_size}; expected a multiple of {32 * self.num_heads}: "
                f"{self.num_heads} heads of 32, 64, 96 ... values"
            )
        if self.dtype not in ("bfloat16", "float32"):
            raise InvalidInputError(f"dtype is {self.dtype!r}; expected bfloat16 or float32")

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layers: 8/3 of the model's, as in Llama, in whole multiples of 64."""
        return -(-8 * self.hidden_size // 3 // 64) * 64

    def config(self) -> dict[str, Any]:
        """What config.json holds, in the terms of Hugging Face transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "vocab_size": self.vocabulary_tokens,
            "max_position_embeddings": self.max_model_len,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": self.dtype,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


def write_small_model(folder: Path, model: SmallModel | None = None, *, weights_seed: int | None = None) -> None:
    """Write config.json, the tokenizer and, if asked for, weights.

    Parameters
    ----------
    folder : Path
        Made if missing; files of the same names are replaced.
    model : SmallModel, optional
        Its shape.
    weights_seed : int, optional
        Write random weights from this seed. Without weights, load it with ``--load-format dummy``; what it answers then
        hardly depends on the prompt.

    Raises
    ------
    ModuleNotFoundError
        `tokenizers`, or for weights `torch` and `safetensors`, are not installed. They come with vLLM.
    """
    chosen = model or SmallModel()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(chosen.config(), indent=1) + "\n")
    _write_tokenizer(folder, chosen)
    if weights_seed is not None:
        _write_weights(folder, chosen, weights_seed)


def _write_tokenizer(folder: Path, model: SmallModel) -> None:
    """A byte-level BPE trained on the language reference that ships with Python."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocabulary_tokens,
        special_tokens=[BEGIN, END, ROLE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    if tokenizer.get_vocab_size() != model.vocabulary_tokens:
        raise InvalidInputError(
            f"vocabulary_tokens is {model.vocabulary_tokens}, but the training text gives only "
            f"{tokenizer.get_vocab_size()}; ask for fewer"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": model.max_model_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _write_weights(folder: Path, model: SmallModel, seed: int) -> None:
    """Random weights under which every token of the context counts, so that outputs tell right from wrong."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, model.dtype)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(dtype)

    width, inner = model.hidden_size, model.intermediate_size
    ones = torch.ones(width, dtype=dtype)
    tensors = {
        "model.embed_tokens.weight": matrix(model.vocabulary_tokens, width),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": matrix(model.vocabulary_tokens, width),
    }
    for number in range(model.num_layers):
        layer = f"model.layers.{number}."
        for name in "qkvo":
            tensors[f"{layer}self_attn.{name}_proj.weight"] = matrix(width, width)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            tensors[f"{layer}mlp.{name}_proj.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = ones.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> int:
    """Command line."""
    usual = SmallModel()
    parser = argparse.ArgumentParser(
        prog="python -m slo_opt.engine_bridge.small_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where config.json and the tokenizer go")
    parser.add_argument("--hidden", type=int, default=usual.hidden_size, help="width; default %(default)s")
    parser.add_argument("--layers", type=int, default=usual.num_layers, help="default %(default)s")
    parser.add_argument("--heads", type=int, default=usual.num_heads, help="default %(default)s")
    parser.add_argument("--vocabulary", type=int, default=usual.vocabulary_tokens, help="tokens; default %(default)s")
    parser.add_argument("--context", type=int, default=usual.max_model_len, help="tokens; default %(default)s")
    parser.add_argument("--dtype", default=usual.dtype, help="bfloat16 or float32; default %(default)s")
    parser.add_argument("--weights", type=int, metavar="SEED", help="write random weights too, from this seed")
    options = parser.parse_args()
    try:
        model = SmallModel(
            options.hidden, options.layers, options.heads, options.vocabulary, options.context, options.dtype
        )
        write_small_model(options.folder, model, weights_seed=options.weights)
    except ModuleNotFoundError as error:
        print(f"slo-opt: error: {error.name} is not installed; it comes with vLLM: make vllm", file=sys.stderr)
        return 6
    except InvalidInputError as error:
        print(f"slo-opt: error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
