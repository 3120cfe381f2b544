"""What a fleet is planned to attain: a share of all requests under an SLO, or of those of each class named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.formulations.fleet_highs import FleetTarget
from slo_opt.simulate.verdict import needed
from slo_opt.traces.nearest import did_you_mean


@dataclass(frozen=True, slots=True)
class Promise:
    """Shares of requests, whatever their weights.

    Parameters
    ----------
    overall : float or None
        Of all requests under an SLO; None where classes are named.
    classes : tuple of (str, float)
        Of the requests of each class; classes that are not named are promised nothing.

    Raises
    ------
    InvalidInputError
        Both or neither are given, a class is named twice, or a share is not in (0, 1].
    """

    overall: float | None = None
    classes: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if (self.overall is None) == (not self.classes):
            raise InvalidInputError("an attainment is one share, or one for each class named; give one of the two")
        names = [name for name, _ in self.classes]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"attainment names class {name!r} twice; give it one share")
        for name, share in (("", self.overall), *self.classes):
            if share is not None and not 0 < share <= 1:  # NaN fails too
                of = f" of class {name!r}" if name else ""
                raise InvalidInputError(f"attainment{of} is {share}; expected a share in (0, 1], for example 0.99")

    @property
    def text(self) -> str:
        """For people."""
        if self.overall is not None:
            return f"{100 * self.overall:g} %"
        return ", ".join(f"{name} {100 * share:g} %" for name, share in self.classes)

    def inputs(self) -> dict[str, Any]:
        """As plain data."""
        return {"overall": self.overall, "classes": dict(self.classes)}

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Promise":
        """From what `inputs` gave."""
        return cls(inputs["overall"], tuple(inputs["classes"].items()))

    def targets(self, instance: Instance) -> tuple[FleetTarget, ...]:
        """Which requests are promised, and how many of them.

        Raises
        ------
        InvalidInputError
            No request is under an SLO, or no request is of a class named.
        """
        members: dict[str, list[int]] = {}
        for index, request in enumerate(instance.requests):
            if instance.value_of(request) > 0:
                members.setdefault(instance.slo_of(request).name, []).append(index)
        if self.overall is not None:
            everyone = sorted(index for indices in members.values() for index in indices)
            return (FleetTarget(tuple(everyone), needed(len(everyone), self.overall)),)
        for name, _ in self.classes:
            if name not in members:
                raise InvalidInputError(
                    f"{instance.name}: no request under an SLO is of class {name!r}. {did_you_mean(name, members)}"
                    f"Classes: {', '.join(sorted(members)) or 'none'}"
                )
        return tuple(
            FleetTarget(tuple(members[name]), needed(len(members[name]), share)) for name, share in self.classes
        )


def max_lost(instance: Instance, targets: tuple[FleetTarget, ...]) -> int:
    """Requests under an SLO that may be lost: whoever loses more breaks one of the targets."""
    offered = sum(instance.value_of(request) > 0 for request in instance.requests)
    return offered - sum(target.needed for target in targets)
