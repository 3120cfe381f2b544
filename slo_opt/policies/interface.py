"""What a scheduler sees and what it answers: one interface for the simulator and for a live engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from slo_opt.domain.engine import EngineModel


class Standing(IntEnum):
    """What a request has been promised.

    Attributes
    ----------
    UNDECIDED
        Nothing yet. The first tokens that it is given admit it.
    ADMITTED
        To be served on time.
    BEST_EFFORT
        To be served with what is left over: declined, or under no SLO from the start.
    """

    UNDECIDED = 0
    ADMITTED = 1
    BEST_EFFORT = 2


@dataclass(slots=True, eq=False)
class Job:
    """One request inside an engine. The engine keeps it up to date; policies only read it.

    A request of several rounds (a tool loop) is one job: it leaves at the end of a round and comes back with the next.

    Parameters
    ----------
    id : str
        The request.
    slo : str
        SLO class of the phase it is in.
    round_slo : str
        SLO class that its round began with.
    value : float
        Value of attaining it; 0 under no SLO.
    round : int
        0 for the first.
    release_s : float
        Arrival of the round.
    tpot_s : float
        Tier of the decode that runs or follows.
    first_due_s : float
        Deadline of the round's first token.
    due_s : float
        Deadline of its next token.
    prompt_tokens, cached_tokens : int
        Of the round: to prefill, and held by the prefix cache at its release.
    known_tokens : int
        Tokens of context that exist, prompt and output.
    computed_tokens : int
        Of those, the ones in the KV cache.
    emitted_tokens : int
        Output tokens of the round so far.
    kv_blocks : int
        Blocks held.
    decoding : bool
        The next token takes one decode step; otherwise ``known_tokens - computed_tokens`` are to be prefilled first.
    missed : bool
        A token was late: the request cannot be attained any more.
    standing : Standing
        What it has been promised.
    preemptions : int
        How often its KV was dropped.
    """

    id: str
    slo: str
    round_slo: str
    value: float
    round: int = 0
    release_s: float = 0.0
    tpot_s: float = 0.0
    first_due_s: float = 0.0
    due_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    known_tokens: int = 0
    computed_tokens: int = 0
    emitted_tokens: int = 0
    kv_blocks: int = 0
    decoding: bool = False
    missed: bool = False
    standing: Standing = Standing.UNDECIDED
    preemptions: int = 0

    @property
    def left_tokens(self) -> int:
        """Tokens to schedule before its next output token appears: the rest of the prompt, or 1 in a decode."""
        return self.known_tokens - self.computed_tokens


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """A round that produced its last token.

    Parameters
    ----------
    id, round_slo : str
        The request, and the SLO class that the round began with.
    output_tokens : int
        Its length.
    missed : bool
        Whether a token of the request was late.
    """

    id: str
    round_slo: str
    output_tokens: int
    missed: bool


@dataclass(slots=True)
class EngineSnapshot:
    """State of one replica between two batches.

    Parameters
    ----------
    now_s : float
        The moment of decision.
    engine : EngineModel
        Batch times as the policy believes them, and the engine's limits.
    running : list of Job
        Those that hold KV blocks, in the order in which they began.
    waiting : list of Job
        Those that hold none: by arrival, preempted ones at the front.
    free_kv_blocks : int
        Blocks free.
    finished : list of RoundEnd
        Rounds that ended since the last decision.
    last_batch_s : float or None
        How long the last batch took.
    acceptance : float
        Chance that a drafted token is accepted; 0 where the engine has no draft model.
    disturbed : bool
        Whether the engine did otherwise than the last decision said: requests were aborted, or the plan not followed.
    """

    now_s: float
    engine: EngineModel
    running: list[Job]
    waiting: list[Job]
    free_kv_blocks: int
    finished: list[RoundEnd] = field(default_factory=list)
    last_batch_s: float | None = None
    acceptance: float = 0.0
    disturbed: bool = False


@dataclass(slots=True)
class Allocation:
    """The next batch, and decisions on requests.

    Parameters
    ----------
    tokens : list of (Job, int)
        Each job at most once: tokens of prefill (at most `Job.left_tokens`), 1 for a decode, 1 + drafted ones for a
        speculated decode. Empty: the engine idles until the next arrival or `wake_s`, or, where it preempted, asks
        again at once.
    preempted : sequence of Job
        Running jobs whose KV is dropped before the batch; they wait at the front and prefill all their tokens again.
    admitted, demoted : sequence of Job
        Jobs that are promised to be on time; jobs that become best effort.
    rejected : sequence of Job
        Jobs that leave for good.
    wake_s : float
        When to ask again if the batch is empty.
    """

    tokens: list[tuple[Job, int]] = field(default_factory=list)
    preempted: Sequence[Job] = ()
    admitted: Sequence[Job] = ()
    demoted: Sequence[Job] = ()
    rejected: Sequence[Job] = ()
    wake_s: float = math.inf


class AllocationPolicy(Protocol):
    """A scheduler of one replica.

    It is asked before every batch. No clock, no input or output, no engine types: equal snapshots in equal order give
    equal answers. An output length is known only through a `LengthPredictor` given to its constructor.
    """

    name: str

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
