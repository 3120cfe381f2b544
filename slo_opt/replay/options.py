"""How a replay is driven."""

import math
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError
from slo_opt.replay.count_by import CountBy
from slo_opt.replay.prompts import MIN_VOCAB_SIZE
from slo_opt.replay.slo_fields import SloFields


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Everything about a replay that is neither the requests nor the server.

    Parameters
    ----------
    model : str or None
        Name of the model; None: the first one that the server offers.
    slo_fields : SloFields
        Where the SLO of a request is written.
    priority_by_slo : bool
        Whether the body has a ``priority``, by the TPOT of the class; vLLM takes it with priority scheduling only.
    count_by : CountBy
        How tokens are told.
    seed : int
        Of the token ids of prompts.
    vocab_size : int
        Token ids are below it (>= 20).
    warmup : int
        Requests that are sent one by one before the first, and are not scored.
    max_concurrency : int
        Calls under way at once. It protects the machine of the generator; where it binds, the load is not the trace's.
    timeout_s : float
        For one call, from its sending to its end.
    max_lateness_s : float
        The run is called late when more than 1 % of the calls are sent later than that after their time.
    api_key_env : str or None
        Environment variable that holds the API key.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    model: str | None = None
    slo_fields: SloFields = SloFields.XARGS
    priority_by_slo: bool = False
    count_by: CountBy = CountBy.TOKEN_IDS
    seed: int = 0
    vocab_size: int = 1000
    warmup: int = 0
    max_concurrency: int = 900
    timeout_s: float = 600.0
    max_lateness_s: float = 0.05
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("seed", 0, 2**63),
            ("vocab_size", MIN_VOCAB_SIZE, 2**31),
            ("warmup", 0, 100_000),
            ("max_concurrency", 1, 100_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; expected an integer in [{least}, {most}]")
        for name in ("timeout_s", "max_lateness_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1e6):
                raise InvalidInputError(f"{name} is {value}; expected seconds in (0, 1e6]")
