"""How the simulated engine differs from its model."""

from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """How the simulated engine differs from its model.

    Parameters
    ----------
    seed : int
        For noise and speculation.
    noise : float
        Standard deviation of the logarithm of a factor on each batch time, of mean 1; 0 for none.
    slowdown : float
        A further factor on every batch time, which the policy does not know: the error of its model.
    acceptance : float
        Chance that a drafted token is accepted, each independent of the others; 0 for no draft model.
    max_lost : int or None
        Stop as soon as more requests under an SLO are sure to be lost: the run then only proves that.
    prefix_cache : bool
        Whether prompts that begin alike find the KV blocks of one another; see `PrefixCache`. Bounds do not count with
        it: they hold for runs without.
    """

    seed: int = 0
    noise: float = 0.0
    slowdown: float = 1.0
    acceptance: float = 0.0
    max_lost: int | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 2:
            raise InvalidInputError(f"noise is {self.noise}; expected the spread of a factor, in [0, 2]")
        if not 0.1 <= self.slowdown <= 10:
            raise InvalidInputError(f"slowdown is {self.slowdown}; expected a factor in [0.1, 10]")
        if not 0 <= self.acceptance < 1:
            raise InvalidInputError(f"acceptance is {self.acceptance}; expected a probability in [0, 1)")
        if self.seed < 0:
            raise InvalidInputError(f"seed is {self.seed}; expected an integer >= 0")
        if self.max_lost is not None and self.max_lost < 0:
            raise InvalidInputError(f"max_lost is {self.max_lost}; expected a number of requests >= 0, or none")
