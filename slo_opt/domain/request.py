"""A request: one or several stages, each a prefill and the decode that follows it."""

import math
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError

MAX_TOKENS = 10_000_000  # per stage: longer than any context window, short enough for exact integer arithmetic


@dataclass(frozen=True, slots=True)
class Stage:
    """A prefill followed by a decode phase under one SLO class.

    A stage with ``prompt_tokens == 0`` continues the decode of the stage before it under another TPOT (a thinking
    phase followed by the response). A stage with a prompt, after the first, is a new round (a tool loop): it is
    released `pause_s` after the last token of the stage before it.

    Parameters
    ----------
    prompt_tokens : int
        Tokens to prefill, less what the prefix cache holds.
    output_tokens : int
        Tokens to produce (>= 1). The first of a stage with a prompt comes out of its last prefill chunk.
    slo : str
        Name of the SLO class: its TTFT limit governs the prefill, its TPOT the decode.
    cached_tokens : int
        Tokens of context that the prefix cache holds when the stage is released.
    pause_s : float
        Tool time before the stage is released.

    Raises
    ------
    InvalidInputError
        A count is negative or larger than 10,000,000, or the pause is not a finite time.
    """

    prompt_tokens: int
    output_tokens: int
    slo: str
    cached_tokens: int = 0
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        for field, value, least in (
            ("prompt_tokens", self.prompt_tokens, 0),
            ("output_tokens", self.output_tokens, 1),
            ("cached_tokens", self.cached_tokens, 0),
        ):
            if not least <= value <= MAX_TOKENS:
                raise InvalidInputError(f"{field} is {value}; expected an integer in [{least}, {MAX_TOKENS}]")
        if not (math.isfinite(self.pause_s) and 0 <= self.pause_s <= 1e9):
            raise InvalidInputError(f"pause_s is {self.pause_s}; expected seconds in [0, 1e9]")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a prompt begins with, for sharing KV blocks with other prompts that begin alike.

    Parameters
    ----------
    block_tokens : int
        Tokens a block (>= 1).
    blocks : tuple of int
        Ids of the leading whole blocks. Equal ids mean equal tokens, those of all blocks before included.

    Raises
    ------
    InvalidInputError
        The block holds no token, or an id is negative.
    """

    block_tokens: int
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.block_tokens <= MAX_TOKENS:
            raise InvalidInputError(
                f"block_tokens of a prefix is {self.block_tokens}; expected an integer in [1, {MAX_TOKENS}]"
            )
        if any(block < 0 for block in self.blocks):
            raise InvalidInputError(f"a prefix has the block id {min(self.blocks)}; expected integers >= 0")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrives.

    Parameters
    ----------
    id : str
        Unique within a trace.
    arrival_s : float
        Arrival, seconds from the start of the trace.
    stages : tuple of Stage
        At least one; the first has a prompt.
    prefix : Prefix or None
        What the first prompt begins with, where it is known. Only a simulation with a prefix cache looks at it.
    """

    id: str
    arrival_s: float
    stages: tuple[Stage, ...]
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidInputError("a request has an empty id; give each request its own")
        if not (math.isfinite(self.arrival_s) and 0 <= self.arrival_s <= 1e9):
            raise InvalidInputError(f"request {self.id!r}: arrival_s is {self.arrival_s}; expected seconds in [0, 1e9]")
        if not self.stages:
            raise InvalidInputError(f"request {self.id!r} has no stage; give it at least a prompt and an output")
        if self.stages[0].prompt_tokens == 0:
            raise InvalidInputError(f"request {self.id!r}: its first stage has no prompt; prompt_tokens must be >= 1")
        for stage in self.stages[1:]:
            if stage.prompt_tokens == 0 and (stage.pause_s or stage.cached_tokens):
                raise InvalidInputError(
                    f"request {self.id!r}: a stage without a prompt continues the decode before it, "
                    "so it can have neither pause_s nor cached_tokens"
                )
        if self.prefix is not None:
            first, known = self.stages[0], len(self.prefix.blocks) * self.prefix.block_tokens
            if first.cached_tokens or known > first.prompt_tokens:
                raise InvalidInputError(
                    f"request {self.id!r}: its prefix of {known} tokens must lie in the first prompt, of "
                    f"{first.prompt_tokens} tokens, and that have no cached_tokens"
                )

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all stages."""
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all stages."""
        return sum(stage.output_tokens for stage in self.stages)
