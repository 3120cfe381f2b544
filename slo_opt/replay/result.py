"""What a replay leaves behind."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.instance import Instance
from slo_opt.domain.token_clock import Scores, score_tokens
from slo_opt.replay.call import Outcome
from slo_opt.replay.metrics import ReplayMetrics, replay_metrics
from slo_opt.replay.options import ReplayOptions
from slo_opt.replay.server import Server


@dataclass(frozen=True, slots=True)
class ServedRound:
    """One call; times in seconds from the start of the trace.

    Parameters
    ----------
    due_s, sent_s : float
        When it should have been sent, and was.
    tokens_s : tuple of float
        When each output token came.
    prompt_tokens : int
        Length of its prompt.
    cached_tokens : int or None
        Of those, what the server found in its prefix cache; None where it does not say.
    estimated : bool
        Whether tokens were counted by events: the server did not tell how many each held.
    """

    due_s: float
    sent_s: float
    tokens_s: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int | None
    estimated: bool


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request, as a client saw it.

    Parameters
    ----------
    outcome : Outcome
        How it ended.
    cause : str
        Why it was refused or failed.
    rounds : tuple of ServedRound
        Calls that were sent.
    """

    outcome: Outcome
    cause: str
    rounds: tuple[ServedRound, ...]

    @property
    def tokens_s(self) -> list[float]:
        """When each output token came, through all rounds."""
        return [time_s for served in self.rounds for time_s in served.tokens_s]


@dataclass(frozen=True)
class ReplayRun:
    """An instance on a live server.

    Parameters
    ----------
    instance : Instance
        What was sent: of a run that was stopped, the requests up to that moment.
    server : Server
        Where to.
    options : ReplayOptions
        How.
    requests : tuple of ServedRequest
        One for each request of the instance.
    cut : bool
        Whether the run was stopped before its end.
    num_throttled : int
        Calls that `ReplayOptions.max_concurrency` held back.
    began_unix_s : float
        Wall-clock time of the first arrival.
    wall_s : float
        Seconds from then to the end.
    """

    instance: Instance
    server: Server
    options: ReplayOptions
    requests: tuple[ServedRequest, ...]
    cut: bool
    num_throttled: int
    began_unix_s: float
    wall_s: float

    @cached_property
    def scores(self) -> Scores:
        """The measured token times under the score rule of the instance."""
        failed = [i for i, request in enumerate(self.requests) if request.outcome is not Outcome.FINISHED]
        return score_tokens(self.instance, [request.tokens_s for request in self.requests], failed)

    def metrics(self) -> ReplayMetrics:
        """Attainment, latencies and goodput by SLO class, and how faithful the load was."""
        return replay_metrics(self)

    def causes(self, outcome: Outcome) -> list[tuple[str, int]]:
        """Why requests were refused, or failed, and how many of them; the most frequent first."""
        found = Counter(request.cause for request in self.requests if request.outcome is outcome)
        return found.most_common()

    def gaps_s(self) -> dict[str, NDArray[np.float64]]:
        """Times between the tokens of a round, seconds, by SLO class of the request."""
        found: dict[str, list[float]] = {}
        for request, served in zip(self.instance.requests, self.requests, strict=True):
            gaps = found.setdefault(self.instance.slo_of(request).name, [])
            for each in served.rounds:
                gaps += np.diff(each.tokens_s).tolist()
        return {name: np.array(gaps, dtype=np.float64) for name, gaps in found.items()}

    def token_rows(self) -> list[dict[str, Any]]:
        """One plain object a request with all its times, for a file of JSON lines."""
        rows = []
        for request, served in zip(self.instance.requests, self.requests, strict=True):
            rounds = [
                {
                    "due_s": each.due_s,
                    "sent_s": each.sent_s,
                    "prompt_tokens": each.prompt_tokens,
                    "cached_tokens": each.cached_tokens,
                    "estimated": each.estimated,
                    "tokens_s": list(each.tokens_s),
                }
                for each in served.rounds
            ]
            rows.append(
                {
                    "id": request.id,
                    "slo": self.instance.slo_of(request).name,
                    "arrival_s": request.arrival_s,
                    "outcome": served.outcome.value,
                    "cause": served.cause,
                    "rounds": rounds,
                }
            )
        return rows
