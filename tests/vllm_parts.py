"""vLLM's own scheduler without a model: its configuration, its KV cache, requests, and what a model would answer."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

for _name, _value in {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
    os.environ.setdefault(_name, _value)

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "max_position_embeddings": 1 << 20,
    "torch_dtype": "float32",
}
HEADS, HEAD_SIZE = 2, 32


def engine_config(folder: Path, *, kv_blocks: int, **settings: object):
    """vLLM's configuration of a tiny model with `kv_blocks` usable KV blocks.

    Parameters
    ----------
    folder : Path
        Where the configuration of the model is written.
    kv_blocks : int
        vLLM sets one more aside for padding.
    settings
        Of `EngineArgs`: block_size, max_num_batched_tokens, max_num_seqs ...
    """
    from vllm.engine.arg_utils import EngineArgs

    (folder / "config.json").write_text(json.dumps(MODEL))
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        async_scheduling=False,
        **settings,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = kv_blocks + 1
    return config


def new_scheduler(kind: type, config, **more: object):
    """A scheduler of class `kind`, as the engine core builds it."""
    return kind(**scheduler_arguments(config), **more)


def scheduler_arguments(config) -> dict[str, object]:
    """What the engine core calls a scheduler class with."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    cache = config.cache_config
    spec = FullAttentionSpec(block_size=cache.block_size, num_kv_heads=HEADS, head_size=HEAD_SIZE, dtype=torch.float32)
    blocks = KVCacheConfig(
        num_blocks=cache.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return {
        "vllm_config": config,
        "kv_cache_config": blocks,
        "structured_output_manager": StructuredOutputManager(config),
        "block_size": cache.block_size,
    }


def new_request(
    name: str,
    prompt_token_ids: Sequence[int],
    output_tokens: int,
    *,
    arrival_s: float = 0.0,
    priority: int = 0,
    block_hasher=None,
    client_index: int = 0,
    **sampling: object,
):
    """A request that produces exactly `output_tokens` tokens."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, detokenize=False, **sampling)
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt_token_ids),
        sampling_params=params,
        pooling_params=None,
        arrival_time=arrival_s,
        priority=priority,
        block_hasher=block_hasher,
        client_index=client_index,
    )


def model_output(sampled: Mapping[str, list[int]]):
    """What the model runner hands back: the sampled tokens by request, none for a prefill that goes on."""
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(
        req_ids=list(sampled),
        req_id_to_index={name: k for k, name in enumerate(sampled)},
        sampled_token_ids=list(sampled.values()),
    )
