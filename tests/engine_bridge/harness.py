"""An engine around vLLM's own scheduler class, without a model: tokens are fabricated, time is virtual.

`Harness` plays the engine core: it schedules, keeps one or two batches in flight, and hands each batch's fabricated
tokens back.
"""

import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # vllm_parts

from vllm_parts import engine_config, model_output, new_request, new_scheduler


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine that the harness plays.

    Parameters
    ----------
    kv_blocks, block_size : int
        KV blocks, and tokens a block.
    max_num_batched_tokens, max_num_seqs, max_model_len : int
        vLLM's limits.
    prefix_caching : bool
        Whether finished prefixes are kept.
    asynchronous : bool
        `AsyncScheduler` with two batches in flight.
    draft_tokens : int
        Tokens drafted a decode (ngram); 0 for none.
    scheduling_policy : str
        "fcfs" or "priority".
    long_prefill_tokens : int
        `long_prefill_token_threshold`.
    log_stats : bool
        Whether vLLM keeps statistics.
    v2_model_runner : bool
        Whether the scheduler speaks to vLLM's second model runner.
    """

    kv_blocks: int = 256
    block_size: int = 16
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 64
    max_model_len: int = 2048
    prefix_caching: bool = False
    asynchronous: bool = False
    draft_tokens: int = 0
    scheduling_policy: str = "fcfs"
    long_prefill_tokens: int = 0
    log_stats: bool = False
    v2_model_runner: bool = False


def base_class(settings: EngineSettings) -> type:
    """vLLM's scheduler class for these settings."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    return AsyncScheduler if settings.asynchronous else Scheduler


@dataclass(slots=True)
class Batch:
    """A batch in flight: vLLM's output, and the requests that will sample."""

    output: object
    samplers: dict[str, int]


@dataclass(slots=True)
class Ledger:
    """What a client got of one request."""

    max_tokens: int
    received: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Harness:
    """The engine core's loop around a scheduler.

    Parameters
    ----------
    folder : Path
        Where the configuration of the model is written.
    settings : EngineSettings
        The engine.
    steer : callable from class to class
        Makes the scheduler class out of vLLM's own.
    acceptance : float
        Chance that a drafted token is accepted.
    seed : int
        Of the accepted drafts.
    """

    def __init__(self, folder: Path, settings: EngineSettings, steer=lambda base: base, acceptance=0.6, seed=0) -> None:
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        try:
            from vllm.utils.hashing import sha256
        except ImportError:
            from vllm.utils import sha256

        extra: dict[str, object] = {}
        if settings.draft_tokens:
            extra["speculative_config"] = {
                "method": "ngram",
                "num_speculative_tokens": settings.draft_tokens,
                "prompt_lookup_max": 4,
            }
        config = engine_config(
            folder,
            kv_blocks=settings.kv_blocks,
            block_size=settings.block_size,
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
            long_prefill_token_threshold=settings.long_prefill_tokens,
            scheduling_policy=settings.scheduling_policy,
            enable_prefix_caching=settings.prefix_caching,
            **extra,
        )
        config.scheduler_config.async_scheduling = settings.asynchronous
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(settings.block_size, sha256)
        self.settings = settings
        self.config = config
        self.scheduler = new_scheduler(steer(base_class(settings)), config, log_stats=settings.log_stats)
        if settings.v2_model_runner:
            self.scheduler.use_v2_model_runner = True
        self.in_flight: deque[Batch] = deque()
        self.ledgers: dict[str, Ledger] = {}
        self._acceptance = acceptance
        self._random = random.Random(seed)
        self.steps = 0

    def add(self, name: str, prompt: int | Sequence[int], output_tokens: int, **more: object):
        """A request arrives; a prompt length stands for a prompt that shares no prefix with any other."""
        if isinstance(prompt, int):
            own = random.Random(name)
            prompt = [own.randrange(100) for _ in range(prompt)]
        more.setdefault("arrival_s", float(len(self.ledgers)))
        request = new_request(name, prompt, output_tokens, block_hasher=self._hasher, **more)
        self.scheduler.add_request(request)
        self.ledgers[name] = Ledger(output_tokens)
        return request

    def abort(self, name: str) -> None:
        """The client goes away."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.ledgers[name].finish_reason = "abort"

    def step(self):
        """Schedule a batch, and complete the oldest one once the pipeline is full; gives vLLM's output."""
        output = self.scheduler.schedule()
        self.steps += 1
        samplers = {}
        for name in output.num_scheduled_tokens:
            if not self.scheduler.requests[name].is_prefill_chunk:
                samplers[name] = len(output.scheduled_spec_decode_tokens.get(name, ()))
        self.in_flight.append(Batch(output, samplers))
        if len(self.in_flight) == (2 if self.settings.asynchronous else 1) or not output.num_scheduled_tokens:
            self.complete()
        return output

    def complete(self) -> None:
        """The oldest batch in flight ends."""
        batch = self.in_flight.popleft()
        names = list(batch.output.num_scheduled_tokens)
        sampled = {name: self._sample(name, batch.samplers.get(name)) for name in names}
        for outputs in self.scheduler.update_from_output(batch.output, model_output(sampled)).values():
            for one in outputs.outputs:
                ledger = self.ledgers[one.request_id]
                if ledger.finish_reason is not None:
                    raise AssertionError(f"{one.request_id} goes on after its end")
                ledger.received += one.new_token_ids
                if one.finish_reason is not None:
                    ledger.finish_reason, ledger.stop_reason = str(one.finish_reason), one.stop_reason
        if self.settings.draft_tokens and not self.settings.asynchronous:
            self._draft([name for name in names if name in batch.samplers])

    def drain(self) -> None:
        """Complete all batches in flight."""
        while self.in_flight:
            self.complete()

    def _sample(self, name: str, drafts: int | None) -> list[int]:
        """One token and the accepted drafts; nothing while the prefill goes on."""
        if drafts is None:
            return []
        accepted = 0
        while accepted < drafts and self._random.random() < self._acceptance:
            accepted += 1
        return [self._random.randrange(100) for _ in range(1 + accepted)]

    def _draft(self, names: list[str]) -> None:
        """The drafter proposes up to `draft_tokens` tokens for each of `names`."""
        from vllm.v1.outputs import DraftTokenIds

        drafts = [[1] * self._random.randint(0, self.settings.draft_tokens) for _ in names]
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))


def loaded_harness(folder: Path, running: int, waiting: int, steer=lambda base: base, **settings: object) -> Harness:
    """An engine in the middle of its work: `running` decodes, and `waiting` requests not yet begun.

    The waiting requests arrive last and have 256 tokens of prompt. With `max_num_seqs` left at `running`, vLLM's own
    rule starts none of them, so that the state lasts.

    Parameters
    ----------
    settings
        Of `EngineSettings`.
    """
    values: dict[str, object] = {
        "kv_blocks": 64 * (running + waiting + 1),
        "max_num_seqs": running,
        "max_num_batched_tokens": 16 * running + 8192,
    }
    harness = Harness(folder, EngineSettings(**{**values, **settings}), steer)
    for k in range(running):
        harness.add(f"run{k}", 16, 900)
    harness.step()
    harness.step()
    for k in range(waiting):
        harness.add(f"wait{k}", 256, 100)
    return harness
