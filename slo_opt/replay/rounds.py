"""A request as the server sees it: one call of the API for each round."""

from dataclasses import dataclass

from slo_opt.domain.request import Request, Stage


@dataclass(frozen=True, slots=True)
class Round:
    """A prompt and all the output up to the next prompt: a thinking phase and its response are one.

    Parameters
    ----------
    stages : tuple of Stage
        The first has a prompt, the others continue its decode.
    """

    stages: tuple[Stage, ...]

    @property
    def pause_s(self) -> float:
        """From the last token of the round before, or the arrival, to its release."""
        return self.stages[0].pause_s

    @property
    def cached_tokens(self) -> int:
        """Tokens at its beginning that were part of the round before."""
        return self.stages[0].cached_tokens

    @property
    def context_tokens(self) -> int:
        """Length of its prompt, those tokens included."""
        return self.stages[0].cached_tokens + self.stages[0].prompt_tokens

    @property
    def output_tokens(self) -> int:
        """Tokens to produce."""
        return sum(stage.output_tokens for stage in self.stages)


def rounds_of(request: Request) -> tuple[Round, ...]:
    """The rounds of a request, in order."""
    groups: list[list[Stage]] = []
    for stage in request.stages:
        if stage.prompt_tokens:
            groups.append([])
        groups[-1].append(stage)
    return tuple(Round(tuple(group)) for group in groups)
