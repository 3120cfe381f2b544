"""What makes a fleet on Ray Serve."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.calibrate import GENERIC
from slo_opt.engine_bridge.config import LEARN, BridgeConfig, config_from_environment, load_config
from slo_opt.policies.lengths import QuantileLengths
from slo_opt.routing.interface import RoutingPolicy
from slo_opt.routing.registry import RoutingContext, make_router
from slo_opt.traces.engine_file import engine_from

# For the small model on a CPU; `vllm` of a plan adds to them or overrides them.
CPU_ARGUMENTS: Mapping[str, Any] = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 256 << 20}


@dataclass(frozen=True, slots=True)
class ServePlan:
    """A fleet on Ray Serve. Paths must hold on every node.

    Parameters
    ----------
    model : str
        A folder, or a name that vLLM knows.
    name : str
        What clients call it.
    replicas, max_replicas : int
        At the start and at least; at most. Where they are equal, nothing is scaled.
    policy : str
        Name of a routing policy, or ``module:Class``.
    setting : mapping
        Keywords of the policy.
    engine : str or None
        Batch times of a replica, as `engine_from` finds them; None: those that `config` names, or generic ones for
        policies that do not look at them.
    config : str or None
        Path of the file with the SLO classes, for router and replicas alike; None: ``$SLO_OPT_CONFIG``.
    vllm : mapping
        Further arguments of vLLM's engine.
    cpu : bool
        Replicas run on the CPU, one core each; otherwise as vLLM's arguments say, on GPUs.
    accelerator : str or None
        Kind of GPU that replicas ask of Ray.
    routers : int
        Processes that take requests. Each has its own books, corrected by what engines report.
    stats_s : float
        Between two reports of a replica.
    max_hold_s : float
        A request that the policy holds back for longer goes, without a promise, where the fewest are.
    upscale_s, downscale_s : float
        For so long more, or fewer, replicas must be needed before their number changes.
    scratch : str or None
        Folder for what replicas leave while they run, sockets above all; None: the system's.

    Raises
    ------
    InvalidInputError
        A figure is out of its range.
    """

    model: str
    name: str = "small"
    replicas: int = 2
    max_replicas: int = 2
    policy: str = "slo-opt"
    setting: Mapping[str, Any] = field(default_factory=dict)
    engine: str | None = None
    config: str | None = None
    vllm: Mapping[str, Any] = field(default_factory=dict)
    cpu: bool = False
    accelerator: str | None = None
    routers: int = 1
    stats_s: float = 0.5
    max_hold_s: float = 60.0
    upscale_s: float = 10.0
    downscale_s: float = 120.0
    scratch: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.max_replicas:
            raise InvalidInputError(
                f"replicas is {self.replicas}, max_replicas {self.max_replicas}; expected 1 <= replicas <= max_replicas"
            )
        if self.routers < 1:
            raise InvalidInputError(f"routers is {self.routers}; expected at least 1")
        for name, least in (("stats_s", 0.1), ("max_hold_s", 0.0), ("upscale_s", 0.0), ("downscale_s", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= 1e6):
                raise InvalidInputError(f"{name} is {value}; expected seconds in [{least:g}, 1e6]")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: it travels to processes of other machines."""
        return {**asdict(self), "setting": dict(self.setting), "vllm": dict(self.vllm)}

    def classes(self) -> BridgeConfig:
        """The configuration that names the SLO classes.

        Raises
        ------
        ConfigError
            See `load_config`.
        """
        return config_from_environment() if self.config is None else load_config(self.config)

    def engine_model(self) -> EngineModel:
        """Batch times of a replica, as believed: those of the plan, else those that the configuration names.

        Raises
        ------
        InvalidInputError
            See `engine_from`.
        """
        configured = self.classes().engine
        given = self.engine or (None if configured == LEARN else configured)
        return GENERIC if given is None else engine_from(given)

    def make_policy(self) -> RoutingPolicy:
        """A fresh routing policy.

        Raises
        ------
        InvalidInputError
            An unknown name or setting.
        """
        return make_router(self.policy, RoutingContext(self.classes().slo_classes(), QuantileLengths()), self.setting)
