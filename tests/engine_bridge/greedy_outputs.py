"""Greedy outputs of random requests on an engine in this process, as JSON.

    python greedy_outputs.py MODEL SEED [--ours] [--policy MODULE:CLASS]

Requests arrive over many steps, share KV memory that is short, and some share the beginning of their prompts.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
REQUESTS, BATCH_TOKENS, KV_BLOCKS, BLOCK_TOKENS = 40, 256, 40, 32
KV_BYTES_A_TOKEN = 2 * 2 * 128 * 4  # keys and values, layers, width, float32


def drawn_requests(seed: int) -> list[dict]:
    """Prompt, length, SLO fields and the step before which it arrives."""
    rng = random.Random(seed)
    common = [rng.randrange(3, 512) for _ in range(96)]
    requests, step = [], 0
    for i in range(REQUESTS):
        prompt = common[:] if rng.random() < 0.3 else []
        prompt += [rng.randrange(3, 512) for _ in range(rng.choice([rng.randint(1, 40), rng.randint(100, 500)]))]
        limits = {"slo_ttft_ms": rng.choice([50, 500, 5000]), "slo_tpot_ms": rng.choice([5, 50, 500])}
        fields = rng.choice([limits, limits, limits, None])
        requests.append({"id": f"r{i}", "step": step, "prompt": prompt, "output": rng.randint(1, 60), "fields": fields})
        step += rng.choice([0, 0, 1, 3, 10])
    return requests


def lead(best) -> float:
    """By how much the log-probability of the likeliest token exceeds that of the next."""
    first, second = sorted((float(one.logprob) for one in best.values()), reverse=True)[:2]
    return first - second


def outputs(model: Path, seed: int, scheduler: str | None) -> dict[str, object]:
    """What each request answered, and how the engine came to it."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        kv_cache_memory_bytes=KV_BLOCKS * BLOCK_TOKENS * KV_BYTES_A_TOKEN,
        block_size=BLOCK_TOKENS,
        max_model_len=1024,
        max_num_batched_tokens=BATCH_TOKENS,
        max_num_seqs=16,
        scheduler_cls=scheduler,
    )
    engine = llm.llm_engine
    live = engine.engine_core.engine_core.scheduler
    waiting = drawn_requests(seed)
    tokens: dict[str, list[int]] = {}
    leads: dict[str, list[float]] = {}
    batches: list[list[int]] = []
    schedule = live.schedule

    def watched(*args, **keywords):
        output = schedule(*args, **keywords)
        batches.append(sorted(output.num_scheduled_tokens.values()))
        return output

    live.schedule = watched
    steps = 0
    while waiting or engine.has_unfinished_requests():
        while waiting and (waiting[0]["step"] <= steps or not engine.has_unfinished_requests()):
            request = waiting.pop(0)
            params = SamplingParams(
                max_tokens=request["output"],
                ignore_eos=True,
                temperature=0.0,
                detokenize=False,
                logprobs=2,
                extra_args=request["fields"],
            )
            engine.add_request(request["id"], {"prompt_token_ids": request["prompt"]}, params)
        for answer in engine.step():
            if answer.finished:
                found = answer.outputs[0]
                tokens[answer.request_id] = list(found.token_ids)
                leads[answer.request_id] = [lead(best) for best in found.logprobs]
        steps += 1
        if steps > 20_000:
            raise SystemExit(f"still unfinished after {steps} steps: {sorted(engine.output_processor.request_states)}")
    blocks = live.kv_cache_manager.block_pool
    return {
        "tokens": tokens,
        "leads": leads,
        "batches": batches,
        "scheduler": [kind.__module__ for kind in type(live).__mro__],
        "used_blocks": blocks.num_gpu_blocks - 1 - blocks.get_num_free_blocks(),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--ours", action="store_true", help="schedule with slo-opt")
    parser.add_argument("--policy", default="slo-opt", help="of the configuration, with --ours")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "slo-opt.toml"
        config.write_text(f'[policy]\nname = "{options.policy}"\n')
        os.environ["SLO_OPT_CONFIG"] = str(config)
        scheduler = "slo_opt.engine_bridge.make_scheduler" if options.ours else None
        found = outputs(options.model, options.seed, scheduler)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
