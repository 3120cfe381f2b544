"""When each output token of a request is due, and how late it was: the score rules, token by token."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule


@dataclass(frozen=True, slots=True)
class StageTimes:
    """What one stage got; seconds, NaN for what never happened.

    Parameters
    ----------
    release_s, first_token_s, last_token_s : float
        Actual times.
    first_due_s : float
        Deadline of the first token.
    lateness_s : float
        Worst lateness over the stage's tokens under the score rule; <= 0 is on time.
    """

    release_s: float
    first_token_s: float
    last_token_s: float
    first_due_s: float
    lateness_s: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How the requests of an instance fared under its score rule.

    Parameters
    ----------
    attained, finished, counted : (N,) bool arrays
        Per request: every token on time; all tokens produced; offered under an SLO (not best effort).
    value : float
        Sum of the values of the attained requests.
    stages : tuple of tuple of StageTimes
        Per request, its stages so far.
    """

    attained: NDArray[np.bool_]
    finished: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    value: float
    stages: tuple[tuple[StageTimes, ...], ...]

    @property
    def num_attained(self) -> int:
        """Requests attained."""
        return int(self.attained.sum())


class TokenClock:
    """Follows one request through its output tokens.

    Token ``n`` of a stage with a prompt is due ``n - 1`` TPOTs after `clock_s`, of a continued decode ``n``: there the
    last token of the phase before counts as token 0.

    Parameters
    ----------
    instance : Instance
        Gives limits and score rule.
    index : int
        Of the request in it.

    Attributes
    ----------
    stage : int
        The one under way; the number of stages after the last token.
    release_s : float
        When it was released, seconds from the start of the trace.
    emitted : int
        Its tokens so far.
    """

    def __init__(self, instance: Instance, index: int) -> None:
        request = instance.requests[index]
        self.rule = instance.score_rule
        self.stages = request.stages
        self.limits_s = [instance.ttft_limit_s(stage) if stage.prompt_tokens else 0.0 for stage in request.stages]
        stretch = TTFT_TOLERANCE if self.rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
        self.tpots_s = [instance.tpot_s(stage) * stretch for stage in request.stages]
        self.times: list[StageTimes] = []
        self.stage = 0
        self.clock_s = 0.0
        self._open(request.arrival_s + self.stages[0].pause_s)

    def _open(self, release_s: float) -> None:
        """Begin the stage of the current index."""
        self.release_s = release_s
        self.emitted = 0
        self.first_s = self.last_s = math.nan
        self.lateness_s = -math.inf
        if self.stages[self.stage].prompt_tokens:
            self.clock_s = release_s + self.limits_s[self.stage]
            self.first_due_s = self.clock_s
        else:
            self.first_due_s = self.clock_s + self.tpots_s[self.stage]

    @property
    def done(self) -> bool:
        """Whether all its tokens were produced."""
        return self.stage == len(self.stages)

    @property
    def on_time(self) -> bool:
        """Whether no stage that has ended missed a deadline."""
        return all(times.lateness_s <= TIME_TOLERANCE_S for times in self.times)

    def emit(self, now_s: float) -> None:
        """One output token at `now_s`, seconds from the start of the trace."""
        stage = self.stages[self.stage]
        self.emitted += 1
        self.last_s = now_s
        first_of_prompt = self.emitted == 1 and stage.prompt_tokens > 0
        last = self.emitted == stage.output_tokens
        if self.emitted == 1:
            self.first_s = now_s
        steps = self.emitted - (stage.prompt_tokens > 0)
        due_s = self.clock_s + steps * self.tpots_s[self.stage]
        if first_of_prompt and self.rule is ScoreRule.FIRST_LATE_SHIFTS:
            due_s = self.release_s + self.limits_s[self.stage] * TTFT_TOLERANCE
            self.clock_s = max(self.clock_s, now_s)
        elif first_of_prompt and self.rule is ScoreRule.MEAN_TPOT:
            self.clock_s = now_s
        if self.rule is not ScoreRule.MEAN_TPOT or first_of_prompt or last:
            self.lateness_s = max(self.lateness_s, now_s - due_s)
        if last:
            self.times.append(self.snapshot())
            self.clock_s = (
                now_s if self.rule is ScoreRule.MEAN_TPOT else self.clock_s + steps * self.tpots_s[self.stage]
            )
            self.stage += 1
            if not self.done:
                self._open(now_s + self.stages[self.stage].pause_s)

    def snapshot(self) -> StageTimes:
        """The stage under way as it stands."""
        return StageTimes(self.release_s, self.first_s, self.last_s, self.first_due_s, self.lateness_s)


def scores_of(instance: Instance, clocks: Mapping[int, TokenClock]) -> Scores:
    """Count what the clocks saw.

    Parameters
    ----------
    instance : Instance
        That they belong to.
    clocks : mapping of int to TokenClock
        By index of the request; who never began may be missing.
    """
    count = len(instance.requests)
    attained, finished = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    counted = np.array([not instance.slo_of(request).best_effort for request in instance.requests], dtype=np.bool_)
    stages: list[tuple[StageTimes, ...]] = []
    for i in range(count):
        clock = clocks.get(i)
        if clock is None:
            stages.append(())
            continue
        finished[i] = clock.done
        stages.append((*clock.times, *(() if clock.done else (clock.snapshot(),))))
        attained[i] = clock.done and counted[i] and clock.on_time
    return Scores(attained, finished, counted, _value(instance, attained), tuple(stages))


def score_tokens(instance: Instance, tokens_s: Sequence[Sequence[float]], failed: Collection[int] = ()) -> Scores:
    """Score measured times of output tokens as `evaluate` scores those of a schedule.

    Parameters
    ----------
    instance : Instance
        Requests, SLOs and score rule.
    tokens_s : sequence of sequences of float
        Per request, when each of its output tokens appeared, through all its stages; seconds from the start of the
        trace, ascending. Fewer than it should have: it has not finished. A round is released `pause_s` after the last
        token of the one before.
    failed : collection of int
        Requests that count neither as finished nor as attained, whatever tokens they got.

    Raises
    ------
    InvalidInputError
        A request has more token times than its stages have tokens.
    ValueError
        There are not as many lists as requests.
    """
    clocks = {}
    for index, (request, times_s) in enumerate(zip(instance.requests, tokens_s, strict=True)):
        if len(times_s) > request.output_tokens:
            raise InvalidInputError(
                f"request {request.id!r} has {len(times_s)} token times for {request.output_tokens} output tokens"
            )
        clock = clocks[index] = TokenClock(instance, index)
        for now_s in times_s:
            clock.emit(now_s)
    found = scores_of(instance, clocks)
    if not failed:
        return found
    good = np.ones(len(instance.requests), dtype=np.bool_)
    good[list(failed)] = False
    attained = found.attained & good
    return Scores(attained, found.finished & good, found.counted, _value(instance, attained), found.stages)


def _value(instance: Instance, attained: NDArray[np.bool_]) -> float:
    return math.fsum(instance.value_of(instance.requests[i]) for i in np.flatnonzero(attained))
