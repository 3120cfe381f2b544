"""What the record of a run says of its fleet."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slo_opt.domain.fingerprint import engine_hash
from slo_opt.routing.registry import full_router_setting
from slo_opt.simulate.fleet_run import FleetRun
from slo_opt.simulate.fleet_spec import FleetOptions

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """Equal replicas.

    Parameters
    ----------
    engine, hash : str
        Name of what they run, and the fingerprint of its figures.
    role : str
        ``both``, ``prefill`` or ``decode``.
    count : int
        How many.
    """

    engine: str
    hash: str
    role: str
    count: int


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """A fleet, its router, and what it took.

    Parameters
    ----------
    router : str
        Its name.
    setting : mapping
        All its keywords, defaults included.
    replicas : tuple of ReplicaKind
        Every replica there was, by kind.
    report_every_s : float
        Seconds between reports to the router; 0 for exact views.
    kv_per_token_s, kv_latency_s : float
        How long KV takes from one replica to another.
    replica_s : float
        Seconds of all replicas together.
    num_hops, num_transfers, num_failed : int
        Requests handed on after a refusal or a failure; KV caches moved; requests lost with a replica.
    """

    router: str
    setting: dict[str, Value]
    replicas: tuple[ReplicaKind, ...]
    report_every_s: float
    kv_per_token_s: float
    kv_latency_s: float
    replica_s: float
    num_hops: int
    num_transfers: int
    num_failed: int

    @property
    def num_replicas(self) -> int:
        """How many there were."""
        return sum(kind.count for kind in self.replicas)

    @property
    def label(self) -> str:
        """The fleet in a few words: ``4``, ``2 prefill + 1 decode``, ``2 llama-3-8b-a100 + 2 llama-3-8b-h100``."""
        several = len({kind.hash for kind in self.replicas}) > 1
        words = []
        for kind in self.replicas:
            role = "" if kind.role == "both" else f" {kind.role}"
            words.append(f"{kind.count}{role}{f' {kind.engine}' if several else ''}")
        return " + ".join(words)

    def described(self) -> dict[str, Any]:
        """What tells it from other fleets, key by key."""
        keys = {f"router.{key}": value for key, value in self.setting.items()}
        return {"router": self.router, "replicas": self.label, "report_every_s": self.report_every_s, **keys}


def fleet_facts(run: FleetRun, setting: Mapping[str, Value], options: FleetOptions) -> FleetFacts:
    """The facts of a run.

    Parameters
    ----------
    run : FleetRun
        Of `play_fleet`.
    setting, options
        Of its router, and as given to it.
    """
    kinds = Counter((stay.engine.name, engine_hash(stay.engine), stay.role.value) for stay in run.stays)
    return FleetFacts(
        router=run.router,
        setting=full_router_setting(run.router, setting),
        replicas=tuple(ReplicaKind(*kind, count) for kind, count in kinds.items()),
        report_every_s=options.report_every_s,
        kv_per_token_s=options.transfer.per_token_s,
        kv_latency_s=options.transfer.latency_s,
        replica_s=run.replica_s,
        num_hops=run.num_hops,
        num_transfers=run.num_transfers,
        num_failed=len(run.failed),
    )
