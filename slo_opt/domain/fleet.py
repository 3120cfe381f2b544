"""A fleet: the replicas that requests are served on, when each of them is up, and how long KV travels between them."""

import math
from dataclasses import dataclass, field

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance

ALWAYS_S = ((-math.inf, math.inf),)


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """How long the KV cache of a request takes from one replica to another; transfers do not slow each other down.

    Parameters
    ----------
    per_token_s : float
        Seconds a token of context. The default is 128 KiB a token (Llama-3-8B) over 25 GB/s (200 Gbit/s).
    latency_s : float
        Seconds before the first byte.

    Raises
    ------
    InvalidInputError
        A time is negative or not finite.
    """

    per_token_s: float = 131072 / 25e9
    latency_s: float = 0.001

    def __post_init__(self) -> None:
        for name, value in (("per_token_s", self.per_token_s), ("latency_s", self.latency_s)):
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"KV transfer: {name} is {value}; expected seconds >= 0")

    @classmethod
    def over(cls, bytes_per_token: float, bytes_per_s: float, latency_s: float = 0.001) -> "KvTransfer":
        """The transfer over a link of so many bytes a second."""
        if not bytes_per_s > 0:
            raise InvalidInputError(f"KV transfer: {bytes_per_s} bytes/s; expected a number above 0")
        return cls(bytes_per_token / bytes_per_s, latency_s)

    def seconds(self, tokens: int) -> float:
        """From the start of the transfer until `tokens` tokens of context are there."""
        return self.latency_s + self.per_token_s * tokens


@dataclass(frozen=True, slots=True)
class FleetReplica:
    """One replica of a fleet.

    Parameters
    ----------
    id : str
        Unique in the fleet.
    engine : EngineModel
        What it runs.
    up_s : tuple of (float, float)
        From when until when it serves, ascending: it may join late, leave early, fail and come back.
    """

    id: str
    engine: EngineModel
    up_s: tuple[tuple[float, float], ...] = ALWAYS_S

    def is_up(self, start_s: float, end_s: float) -> bool:
        """Whether it serves from `start_s` to `end_s` without a break."""
        return any(from_s <= start_s and end_s <= until_s for from_s, until_s in self.up_s)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where a schedule runs.

    Parameters
    ----------
    replicas : tuple of FleetReplica
        By their number in the schedule.
    transfer : KvTransfer
        Between any two of them.
    """

    replicas: tuple[FleetReplica, ...]
    transfer: KvTransfer = field(default_factory=KvTransfer)

    def __post_init__(self) -> None:
        ids = [replica.id for replica in self.replicas]
        if not ids or len(set(ids)) < len(ids):
            raise InvalidInputError(
                f"a fleet of {', '.join(ids) or 'no replicas'}; expected some, each with its own id"
            )

    @staticmethod
    def of(instance: Instance) -> "Fleet":
        """The equal replicas of an instance, always up."""
        return Fleet(tuple(FleetReplica(f"r{k}", instance.engine) for k in range(instance.num_replicas)))
