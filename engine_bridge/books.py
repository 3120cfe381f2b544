"""What is believed of each request in a live engine, kept true by what the engine schedules and hands out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slo_opt.domain.engine import prefill_pairs
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.roster import Roster
from slo_opt.engine_bridge.vllm_state import RequestState


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request of a finished batch got.

    Parameters
    ----------
    id : str
        The request.
    tokens : sequence of int
        Its new output token ids.
    known_tokens : int
        Prompt and output tokens it has now.
    finished : bool
        Whether it is complete.
    """

    id: str
    tokens: Sequence[int]
    known_tokens: int
    finished: bool


@dataclass(slots=True)
class Delivered:
    """What came of a batch.

    Parameters
    ----------
    finished : list of LiveJob
        Complete: they are out of the books.
    drafted, accepted : int
        Drafted tokens that were verified, and those of them that were right.
    """

    finished: list[LiveJob] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


class Books:
    """The jobs, moved on with every batch.

    Between two calls `known_tokens`, `computed_tokens` and `emitted_tokens` of a running job count what is in flight:
    one token of each decode, however many are drafted; what was accepted is added when it is handed out.

    Parameters
    ----------
    block_size_tokens : int
        Tokens a KV block.
    thinking_end_token_id : int or None
        The token that ends a thinking phase.

    Attributes
    ----------
    roster : Roster
        The jobs.
    doubtful : bool
        Something does not fit: `check` before the next plan.
    """

    def __init__(self, block_size_tokens: int, thinking_end_token_id: int | None = None) -> None:
        self.roster = Roster()
        self.doubtful = False
        self._block = block_size_tokens
        self._thinking_end = thinking_end_token_id
        self._max_tokens: dict[str, int] = {}

    def add(self, job: LiveJob, max_tokens: int) -> None:
        """A request that will produce at most `max_tokens` tokens has come."""
        self._max_tokens[job.id] = max_tokens
        self.roster.add(job)

    def remove(self, id: str) -> LiveJob | None:
        """A request has left; its job, or None if there was none."""
        self._max_tokens.pop(id, None)
        return self.roster.remove(id)

    def scheduled(
        self, tokens: Mapping[str, int], computed_tokens: Callable[[str], int]
    ) -> tuple[BatchSample | None, list[LiveJob]]:
        """A batch has begun.

        Parameters
        ----------
        tokens : mapping of str to int
            By request.
        computed_tokens : callable
            Of a request that begins: its tokens in the KV cache, this batch included.

        Returns
        -------
        sample : BatchSample or None
            The batch as the engine model sees it; None if it is empty, or holds a request that is not in the books.
        begun : list of LiveJob
            Those that hold their first KV blocks.
        """
        running, block = self.roster.running, self._block
        begun: list[LiveJob] = []
        context = total = draft_steps = 0
        pairs = 0.0
        foreign = False
        for id, count in tokens.items():
            total += count
            job = running.get(id)
            if job is None:
                job = self._begin(id, computed_tokens(id) - count)
                if job is None:
                    foreign = True
                    continue
                begun.append(job)
            computed = job.computed_tokens
            if job.decoding:
                context += computed
                if count > 1:
                    draft_steps = max(draft_steps, count - 1)
                computed += 1
            else:
                pairs += prefill_pairs(count, computed)
                computed += count
            job.computed_tokens = computed
            if computed == job.known_tokens:
                job.known_tokens += 1  # the token in flight
                job.decoding = True
                job.advance(job.emitted_tokens + 1)
                if job.emitted_tokens >= self._max_tokens[id]:
                    self.roster.end(job)
            elif not job.decoding:
                job.decoding = job.emitted_tokens > 0 and job.known_tokens - computed == 1
            if job.kv_blocks * block < computed:
                job.kv_blocks = -(-computed // block)
        known = total > 0 and not foreign
        return (BatchSample(total, context, pairs, len(tokens), draft_steps) if known else None), begun

    def _begin(self, id: str, past_tokens: int) -> LiveJob | None:
        job = self.roster.get(id)
        if job is None or id in self.roster.ending:
            return None
        self.found(job, past_tokens)
        self.roster.begin(job)
        return job

    def found(self, job: LiveJob, cached_tokens: int) -> None:
        """The prefix cache holds so many tokens of a waiting job."""
        job.computed_tokens = cached_tokens
        if not job.emitted_tokens:
            job.cached_tokens = cached_tokens
            job.prompt_tokens = job.known_tokens - cached_tokens

    def preempted(self, ids: Iterable[str]) -> None:
        """Requests lost their KV blocks."""
        for id in ids:
            job = self.roster.running.get(id) or self.roster.ending.get(id)
            if job is None:
                continue
            self.roster.give_back(job)
            job.preemptions += 1
            job.kv_blocks = job.computed_tokens = 0
            job.decoding = False
            # What is in flight may still come, but nothing can build on it.
            job.known_tokens -= job.emitted_tokens - job.delivered
            job.advance(job.delivered)

    def delivered(self, deliveries: Sequence[Delivery], tokens: Mapping[str, int], now_s: float) -> Delivered:
        """A batch has run.

        Parameters
        ----------
        deliveries : sequence of Delivery
            What its requests got.
        tokens : mapping of str to int
            What they were scheduled with; looked at for drafts only, empty where there were none.
        now_s : float
            When they got it.
        """
        found = Delivered()
        for item in deliveries:
            job = self.roster.get(item.id)
            if job is None:
                continue
            count = len(item.tokens)
            if count:
                if self._thinking_end is not None and job.thinking:
                    self._watch_thinking(job, item.tokens)
                job.deliver(count, now_s)
                if tokens:
                    found.drafted += tokens[item.id] - 1 if count > 1 or job.delivered > 1 else 0
                    found.accepted += count - 1
            if job.kv_blocks == 0:  # preempted meanwhile
                job.known_tokens = item.known_tokens
                job.advance(job.delivered)
            elif count > 1:
                job.known_tokens += count - 1
                job.computed_tokens += count - 1
                job.advance(job.emitted_tokens + count - 1)
            if item.finished:
                self.remove(item.id)
                found.finished.append(job)
            elif item.id in self.roster.ending and job.delivered >= job.emitted_tokens:
                self.doubtful = True  # it should have ended
        return found

    def _watch_thinking(self, job: LiveJob, tokens: Sequence[int]) -> None:
        for position, token in enumerate(tokens):
            if token == self._thinking_end:
                job.end_thinking(job.delivered + position + 1)
                return

    def check(self, states: Mapping[str, tuple[bool, RequestState]]) -> tuple[list[str], list[str]]:
        """Take what is believed of each request from the engine again.

        Parameters
        ----------
        states : mapping of str to (bool, RequestState)
            Every request in the engine: whether it holds KV blocks, and where it stands.

        Returns
        -------
        gone, foreign : list of str
            Requests that the engine does not have; those that are not in the books.
        """
        gone = []
        for job in list(self.roster):
            found = states.get(job.id)
            if found is None:
                gone.append(job.id)
                continue
            running, state = found
            self.roster.remove(job.id)
            job.known_tokens, job.computed_tokens = state.known_tokens, state.computed_tokens
            job.decoding = running and state.decoding
            job.advance(state.output_tokens)
            job.kv_blocks = -(-state.computed_tokens // self._block) if running else 0
            self.roster.add(job)
            if running:
                self.roster.begin(job)
        self.doubtful = False
        return gone, [id for id in states if self.roster.get(id) is None]
