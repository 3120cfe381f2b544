"""vLLM's own Scheduler class driven without a model: fabricated tokens, and a clock that the engine model moves."""

import sys
from dataclasses import dataclass
from pathlib import Path

from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.instance import Instance

sys.path.append(str(Path(__file__).parents[1]))  # vllm_parts

from vllm_parts import engine_config, model_output, new_request, new_scheduler

TOKEN = 7


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
        from vllm.v1.core.sched.scheduler import Scheduler

        engine = instance.engine
        config = engine_config(
            folder,
            kv_blocks=engine.kv_blocks,
            enable_prefix_caching=False,
            block_size=engine.block_size_tokens,
            max_model_len=engine.max_model_len,
            max_num_batched_tokens=budget_tokens,
            max_num_seqs=engine.max_num_seqs,
            long_prefill_token_threshold=long_prefill_tokens,
            scheduling_policy="fcfs" if priorities is None else "priority",
        )
        self._scheduler = new_scheduler(Scheduler, config)
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
        stage = request.stages[0]
        return new_request(
            request.id,
            [TOKEN] * stage.prompt_tokens,
            stage.output_tokens,
            arrival_s=request.arrival_s,
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
        requests = {name: self._scheduler.requests[name] for name in tokens}
        return model_output(
            {name: [TOKEN] if one.num_computed_tokens == one.num_tokens else [] for name, one in requests.items()}
        )
