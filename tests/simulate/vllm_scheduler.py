"""vLLM's own Scheduler class driven without a model: fabricated tokens, and a clock that the engine model moves."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import Instance

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
HEADS, HEAD_SIZE, TOKEN = 2, 32, 7


@dataclass(frozen=True, slots=True)
class Step:
    """One batch: when it starts, the scheduled tokens by request, and the requests preempted just before it."""

    start_s: float
    tokens: dict[str, int]
    preempted: tuple[str, ...]


class VllmScheduler:
    """The real Scheduler for one engine; `serve` plays an instance of single-round requests on it.

    Parameters
    ----------
    folder : Path
        Where the configuration of the model is written.
    instance : Instance
        Its engine sizes the KV cache and gives the batch times.
    budget_tokens : int
        `max_num_batched_tokens`.
    long_prefill_tokens : int
        `long_prefill_token_threshold`; 0 for none.
    priorities : dict of str to int, or None
        By request, lowest first; None for first come first served.
    """

    def __init__(
        self,
        folder: Path,
        instance: Instance,
        *,
        budget_tokens: int,
        long_prefill_tokens: int = 0,
        priorities: dict[str, int] | None = None,
    ) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        engine = instance.engine
        (folder / "config.json").write_text(json.dumps(MODEL))
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            enable_prefix_caching=False,
            async_scheduling=False,
            block_size=engine.block_size_tokens,
            max_model_len=engine.max_model_len,
            max_num_batched_tokens=budget_tokens,
            max_num_seqs=engine.max_num_seqs,
            long_prefill_token_threshold=long_prefill_tokens,
            scheduling_policy="fcfs" if priorities is None else "priority",
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = engine.kv_blocks + 1  # vLLM sets one aside for padding
        self._scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=_kv_cache(engine.kv_blocks + 1, engine.block_size_tokens),
            structured_output_manager=StructuredOutputManager(config),
            block_size=engine.block_size_tokens,
        )
        self._instance = instance
        self._priorities = priorities or {}

    def serve(self) -> list[Step]:
        """Every batch until all requests are finished."""
        scheduler = self._scheduler
        arrivals = list(self._instance.requests)
        steps: list[Step] = []
        preempted: list[str] = []
        now_s = 0.0
        while arrivals or scheduler.has_unfinished_requests():
            while arrivals and arrivals[0].arrival_s <= now_s:
                scheduler.add_request(self._request(arrivals.pop(0)))
            if not scheduler.has_unfinished_requests():
                now_s = arrivals[0].arrival_s
                continue
            output = scheduler.schedule()
            dropped = tuple(output.preempted_req_ids or ())
            preempted += dropped
            tokens = dict(output.num_scheduled_tokens)
            if not tokens:
                if not dropped:
                    raise AssertionError(f"vLLM schedules nobody at {now_s} s and would wait for ever")
                continue
            steps.append(Step(now_s, tokens, tuple(preempted)))
            preempted = []
            now_s += self._batch_s(tokens)
            scheduler.update_from_output(output, self._tokens_of(tokens))
        return steps

    def _request(self, request):
        from vllm import SamplingParams
        from vllm.v1.request import Request

        stage = request.stages[0]
        params = SamplingParams(max_tokens=stage.output_tokens, ignore_eos=True, detokenize=False)
        return Request(
            request_id=request.id,
            prompt_token_ids=[TOKEN] * stage.prompt_tokens,
            sampling_params=params,
            pooling_params=None,
            arrival_time=request.arrival_s,
            priority=self._priorities.get(request.id, 0),
        )

    def _batch_s(self, tokens: dict[str, int]) -> float:
        """Batch time of what was just scheduled; vLLM has already counted its tokens as computed."""
        context, pairs = 0, 0.0
        for name, count in tokens.items():
            request = self._scheduler.requests[name]
            past = request.num_computed_tokens - count
            if request.num_output_tokens and request.num_tokens - past == 1:
                context += past
            else:
                pairs += prefill_pairs(count, past)
        return self._instance.engine.batch_time_s(
            sum(tokens.values()),
            decode_context_tokens=context,
            prefill_pairs=pairs,
            num_requests=len(tokens),
        )

    def _tokens_of(self, tokens: dict[str, int]):
        """What a model would answer: one token for each request whose context is complete."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(tokens)
        requests = [self._scheduler.requests[name] for name in names]
        sampled = [[TOKEN] if request.num_computed_tokens == request.num_tokens else [] for request in requests]
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: k for k, name in enumerate(names)},
            sampled_token_ids=sampled,
        )


def _kv_cache(blocks: int, block_size_tokens: int):
    """The KV cache of one layer."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size_tokens, num_kv_heads=HEADS, head_size=HEAD_SIZE, dtype=torch.float32)
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
