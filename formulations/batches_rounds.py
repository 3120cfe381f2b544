"""Level 1 in terms of rounds: a prefill, the decode after it, and the limits between its tokens.

Shared by the CP-SAT model and by the exact timing of its answer, so that both speak of the same tokens.
"""

from dataclasses import dataclass
from itertools import pairwise

from slo_opt.domain.instance import Instance
from slo_opt.domain.slo import TTFT_TOLERANCE, ScoreRule

RELEASE, CLOCK = 0, -1


@dataclass(frozen=True, slots=True)
class Limit:
    """Token `token` (from 1) of a round comes at most `lag_s` after `anchor`.

    Parameters
    ----------
    token : int
        The token that is due.
    anchor : int
        An earlier token, `RELEASE`, or `CLOCK`: the later of the first token and its deadline.
    lag_s : float
        Seconds.
    """

    token: int
    anchor: int
    lag_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """One prefill and its decode, thinking and response together.

    Parameters
    ----------
    request : int
        Index into `Instance.requests`.
    first : bool
        Whether it opens its request; otherwise it is released `pause_s` after the last token of the round before it
        in the list.
    arrival_s, pause_s : float
        Arrival of the request; time from there, or from the round before, to the release.
    prompt_tokens, cached_tokens, output_tokens : int
        Tokens to prefill, tokens in the prefix cache, tokens to produce.
    ttft_s : float
        First-token limit after the release.
    limits : tuple of Limit
        What the score rule demands.
    """

    request: int
    first: bool
    arrival_s: float
    pause_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: float
    limits: tuple[Limit, ...]

    @property
    def final_context(self) -> int:
        """Tokens in the KV cache at the end: the last output token is never stored."""
        return self.cached_tokens + self.prompt_tokens + self.output_tokens - 1


def rounds_of(instance: Instance) -> tuple[Round, ...]:
    """All rounds of all requests that are not best effort, those of one request in a row."""
    rule = instance.score_rule
    stretch = TTFT_TOLERANCE if rule is ScoreRule.FIRST_LATE_SHIFTS else 1.0
    rounds: list[Round] = []
    for index, request in enumerate(instance.requests):
        if instance.value_of(request) == 0:
            continue
        starts = [s for s, stage in enumerate(request.stages) if stage.prompt_tokens] + [len(request.stages)]
        for begin, end in pairwise(starts):
            head = request.stages[begin]
            ttft_s = instance.ttft_limit_s(head)
            limits = [Limit(1, RELEASE, ttft_s * stretch)]
            token, offset_s = 1, 0.0
            for s in range(begin, end):
                stage, tpot_s = request.stages[s], instance.tpot_s(request.stages[s]) * stretch
                steps = stage.output_tokens - (s == begin)
                if rule is ScoreRule.MEAN_TPOT:
                    limits += [Limit(token + steps, token, steps * tpot_s)] if steps else []
                elif rule is ScoreRule.DSLO:
                    due_s = ttft_s + offset_s
                    limits += [Limit(token + k, RELEASE, due_s + k * tpot_s) for k in range(1, steps + 1)]
                else:
                    limits += [Limit(token + k, CLOCK, offset_s + k * tpot_s) for k in range(1, steps + 1)]
                token += steps
                offset_s += steps * tpot_s
            rounds.append(
                Round(
                    request=index,
                    first=begin == 0,
                    arrival_s=request.arrival_s,
                    pause_s=head.pause_s,
                    prompt_tokens=head.prompt_tokens,
                    cached_tokens=head.cached_tokens,
                    output_tokens=token,
                    ttft_s=ttft_s,
                    limits=tuple(limits),
                )
            )
    return tuple(rounds)
