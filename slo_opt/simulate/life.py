"""A request on its way through the simulated engine: the job that policies see, and what they must not see."""

import math
from array import array

from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule
from slo_opt.policies.interface import Job, Standing


class Life(Job):
    """One request under simulation.

    Attributes
    ----------
    index : int
        In `Instance.requests`.
    left_output : int
        Output tokens before its phase ends.
    last_token_s : float
        When its latest token of the round appeared; NaN before the first.
    gaps_s : array of float
        Where times between tokens are collected.
    """

    __slots__ = (
        "_clock_s",
        "_instance",
        "_rule",
        "_stage",
        "_stages",
        "_steps",
        "gaps_s",
        "index",
        "last_token_s",
        "left_output",
    )

    def __init__(self, instance: Instance, index: int, gaps_s: "array[float]") -> None:
        request = instance.requests[index]
        first = request.stages[0]
        super().__init__(request.id, first.slo, first.slo, instance.value_of(request))
        self.index = index
        self.gaps_s = gaps_s
        self._instance = instance
        self._rule = instance.score_rule
        self._stages = request.stages
        self._stage = 0
        self._clock_s = 0.0
        if instance.slo_of(request).best_effort:
            self.standing = Standing.BEST_EFFORT
        self._open(request.arrival_s + first.pause_s)

    def _open(self, release_s: float) -> None:
        """Begin the stage of the current index."""
        stage = self._stages[self._stage]
        tolerance = TTFT_TOLERANCE if self._rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
        self.slo = stage.slo
        self.left_output = stage.output_tokens
        self.tpot_s = self._instance.tpot_s(stage) * tolerance
        if not stage.prompt_tokens:
            self._steps = 1  # the last token of the phase before counts as token 0
            self.due_s = self._clock_s + self.tpot_s
            return
        limit_s = self._instance.ttft_limit_s(stage)
        self.round_slo = stage.slo
        self.release_s = release_s
        self.first_due_s = self.due_s = release_s + limit_s * tolerance
        self._clock_s = release_s + limit_s
        self._steps = 0
        self.prompt_tokens = stage.prompt_tokens
        self.cached_tokens = self.computed_tokens = stage.cached_tokens
        self.known_tokens = stage.cached_tokens + stage.prompt_tokens
        self.emitted_tokens = 0
        self.decoding = False
        self.last_token_s = math.nan

    @property
    def done(self) -> bool:
        """Whether all its tokens were produced."""
        return self._stage == len(self._stages)

    @property
    def decode_left(self) -> int:
        """Output tokens before the round ends."""
        left = self.left_output
        for stage in self._stages[self._stage + 1 :]:
            if stage.prompt_tokens:
                break
            left += stage.output_tokens
        return left

    def emit(self, now_s: float) -> bool:
        """Produce one token; whether the round ended with it."""
        self.known_tokens += 1
        self.emitted_tokens += 1
        self.left_output -= 1
        if self.emitted_tokens > 1:
            self.gaps_s.append(now_s - self.last_token_s)
        self.last_token_s = now_s
        rule = self._rule
        if rule is ScoreRule.DSLO:
            if now_s > self.due_s + TIME_TOLERANCE_S:
                self.missed = True
        else:
            self._score(now_s)
        self._steps += 1
        self.due_s = self._clock_s + self._steps * self.tpot_s
        if self.left_output:
            return False
        return self._end_stage(now_s)

    def _score(self, now_s: float) -> None:
        """Lateness, and the clock of the tokens to come, under the other two rules."""
        first = self._steps == 0
        counts = self._rule is ScoreRule.FIRST_LATE_SHIFTS or first or not self.left_output
        if counts and now_s > self.due_s + TIME_TOLERANCE_S:
            self.missed = True
        if first:
            self._clock_s = max(self._clock_s, now_s) if self._rule is ScoreRule.FIRST_LATE_SHIFTS else now_s

    def _end_stage(self, now_s: float) -> bool:
        steps = self._steps - 1
        self._clock_s = now_s if self._rule is ScoreRule.MEAN_TPOT else self._clock_s + steps * self.tpot_s
        self._stage += 1
        if self.done:
            return True
        stage = self._stages[self._stage]
        if stage.prompt_tokens:
            return True
        self._open(now_s)
        return False

    def next_round(self, now_s: float) -> float:
        """Begin the round after the one that has ended; its release."""
        release_s = now_s + self._stages[self._stage].pause_s
        self.round += 1
        self._open(release_s)
        return release_s
