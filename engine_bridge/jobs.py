"""A request inside a live engine as the job that policies see, with the clock of its tokens."""

import math

from slo_opt.domain.instance import TIME_TOLERANCE_S
from slo_opt.engine_bridge.slo_fields import RequestSlo
from slo_opt.policies.interface import Job, Standing


class LiveJob(Job):
    """One request of the engine.

    Times are seconds of the engine's monotonic clock. Token ``n`` is due under the score rule `dslo`: the first by the
    TTFT limit, each further one a TPOT later, whenever the one before it came. Tokens of a thinking phase have a TPOT
    of their own; the clock goes on through the end of the phase.

    Parameters
    ----------
    id : str
        The engine's request id.
    slo : RequestSlo
        What it was promised.
    arrival_s : float
        When it reached the server.
    ttft_limit_s : float
        TTFT limit.
    cushion_s : float
        Deadlines that policies see are so much earlier than those that count: what a batch that overruns may take.
    prompt_tokens : int
        Tokens of its prompt.

    Attributes
    ----------
    promise : RequestSlo
        As given.
    delivered : int
        Output tokens that the engine has handed out; `emitted_tokens` counts those in flight, too.
    first_token_s, last_token_s : float
        When they were handed out; NaN before.
    lateness_s : float
        Worst lateness of a token so far; -inf before the first.
    reason : str
        Why it became best effort, or was refused; empty otherwise.
    """

    __slots__ = (
        "_thinking_tokens",
        "cushion_s",
        "delivered",
        "first_token_s",
        "last_token_s",
        "lateness_s",
        "promise",
        "reason",
    )

    def __init__(
        self,
        id: str,
        slo: RequestSlo,
        arrival_s: float,
        ttft_limit_s: float,
        prompt_tokens: int,
        cushion_s: float = 0.0,
    ) -> None:
        super().__init__(id, slo.slo, slo.slo, 0.0 if slo.best_effort else slo.weight)
        self.promise = slo
        self.release_s = arrival_s
        self.first_due_s = self.due_s = arrival_s + ttft_limit_s - cushion_s
        self.cushion_s = cushion_s
        self.prompt_tokens = self.known_tokens = prompt_tokens
        self.delivered = 0
        self.first_token_s = self.last_token_s = math.nan
        self.lateness_s = -math.inf
        self.reason = ""
        # Thinking lasts until its end is seen, at most for the tokens that the request says.
        limit = math.inf if slo.thinking_tokens is None else slo.thinking_tokens
        self._thinking_tokens = 0.0 if slo.thinking_tpot_s is None else limit
        self.tpot_s = self._tpot_s(1)
        if slo.best_effort:
            self.standing = Standing.BEST_EFFORT

    def _tpot_s(self, token: int) -> float:
        thinking_s = self.promise.thinking_tpot_s
        return thinking_s if thinking_s is not None and token <= self._thinking_tokens else self.promise.tpot_s

    def due_at(self, token: int) -> float:
        """Deadline of output token `token` (from 1), in seconds, the cushion taken off."""
        thinking = self._thinking_tokens
        if not thinking:
            return self.first_due_s + (token - 1) * self.promise.tpot_s
        thinking_s = self.promise.thinking_tpot_s
        assert thinking_s is not None
        if token <= thinking:
            return self.first_due_s + (token - 1) * thinking_s
        return self.first_due_s + (thinking - 1) * thinking_s + (token - thinking) * self.promise.tpot_s

    def advance(self, emitted_tokens: int) -> None:
        """So many tokens are handed out or in flight: move on to the deadline of the next."""
        if emitted_tokens != self.emitted_tokens:
            self.emitted_tokens = emitted_tokens
            self.due_s = self.due_at(emitted_tokens + 1)
            self.tpot_s = self._tpot_s(emitted_tokens + 1)

    def end_thinking(self, tokens: int) -> None:
        """The thinking phase ended with output token `tokens`."""
        if tokens < self._thinking_tokens:
            self._thinking_tokens = tokens
            self.due_s = self.due_at(self.emitted_tokens + 1)
            self.tpot_s = self._tpot_s(self.emitted_tokens + 1)

    @property
    def thinking(self) -> bool:
        """Whether the next token to hand out belongs to the thinking phase."""
        return self.delivered < self._thinking_tokens

    @property
    def thinking_tokens(self) -> int | None:
        """Tokens handed out in the thinking phase; None where there is none."""
        if self.promise.thinking_tpot_s is None:
            return None
        return int(min(self._thinking_tokens, self.delivered))

    def deliver(self, tokens: int, now_s: float) -> None:
        """Hand out `tokens` further tokens at `now_s`."""
        first = self.delivered + 1
        if not self.delivered:
            self.first_token_s = now_s
        self.delivered += tokens
        self.last_token_s = now_s
        # Of tokens that come together the first is due first.
        late_s = now_s - self.due_at(first) - self.cushion_s
        if late_s > self.lateness_s:
            self.lateness_s = late_s
            if late_s > TIME_TOLERANCE_S and not self.promise.best_effort:
                self.missed = True
