"""Outer time windows: the earliest release and latest deadlines of each stage over all schedules that attain it.

Schedules with preemption are included, those with speculation are not. Relaxations build on these: a window that is
wider than need be keeps a bound valid, a narrower one would not.
"""

from dataclasses import dataclass

from slo_opt.domain.instance import Instance
from slo_opt.domain.request import Request
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule


@dataclass(frozen=True, slots=True)
class StageWindow:
    """When a stage can run if its request is attained. All times in seconds from the start of the trace.

    Parameters
    ----------
    release_s : float
        No token of the stage is computed before.
    first_due_s : float
        Latest time of the first token. For a stage that continues a decode: of the first token under its own TPOT;
        under ``mean-tpot``, which sets no time for it, that of the last.
    tpot_s : float
        Token ``n`` is due by ``first_due_s + (n - 1) * tpot_s``.
    last_due_s : float
        Latest time of the last token.
    each_token : bool
        Whether every token has its due time, or (score rule ``mean-tpot``) only the first and the last.
    """

    release_s: float
    first_due_s: float
    tpot_s: float
    last_due_s: float
    each_token: bool

    def due_s(self, token: int) -> float:
        """Latest time of output token `token`, counted from 1."""
        if token == 1:
            return self.first_due_s
        return self.first_due_s + (token - 1) * self.tpot_s if self.each_token else self.last_due_s


def stage_windows(instance: Instance, request: Request) -> tuple[StageWindow, ...]:
    """Outer windows of all stages of a request, chained: a round is released when the one before it ends."""
    engine = instance.engine
    slack = TTFT_TOLERANCE if instance.score_rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
    each_token = instance.score_rule is not ScoreRule.MEAN_TPOT
    windows: list[StageWindow] = []
    release_s = due_s = request.arrival_s
    context = 0
    for stage in request.stages:
        tpot_s = instance.tpot_s(stage) * slack
        steps = stage.output_tokens
        if stage.prompt_tokens:
            release_s += stage.pause_s
            first_due_s = due_s + stage.pause_s + instance.ttft_limit_s(stage) * slack
            context = stage.cached_tokens + stage.prompt_tokens
            earliest_s = release_s + engine.least_prefill_s(stage.prompt_tokens, stage.cached_tokens)
            steps -= 1
        else:
            first_due_s = due_s + tpot_s
            earliest_s = release_s
        last_due_s = first_due_s + (stage.output_tokens - 1) * tpot_s
        if not stage.prompt_tokens and not each_token:
            first_due_s = last_due_s
        windows.append(StageWindow(release_s, first_due_s, tpot_s, last_due_s, each_token))
        # The last token of a phase is stored by the step that follows it.
        release_s = earliest_s + steps * engine.least_step_s(context if stage.prompt_tokens else context - 1)
        due_s = last_due_s
        context += stage.output_tokens
    return tuple(windows)
